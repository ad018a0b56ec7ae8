// "Publish": what would be sent to the Hub, then a job that sends it.

import { post } from "./ask.js";
import { dialog } from "./dialog.js";
import { bytes, h, note, toggle } from "./dom.js";
import { session } from "./session.js";

export function publishDialog({ started }) {
  let model = null; // as it was when the dialog opened: another may come meanwhile
  let plan = null; // what the server would send for the wish on screen
  let isPrivate = true;
  let turn = 0;

  const about = h("p");
  const repo = h("input", { type: "text", class: "mono", placeholder: "OWNER/NAME", autocomplete: "off", spellcheck: "false", oninput: change });
  const lock = toggle("Private: only its owner sees it", true, (on) => { isPrivate = on; change(); });
  const files = h("div", { class: "tablebox" });
  const problem = h("div", { class: "slot", "aria-live": "polite" });
  const go = h("button", { type: "submit", class: "btn pri" });
  const form = h("form", { class: "cardbody", onsubmit: (event) => { event.preventDefault(); submit(); } },
    about, h("label", { class: "fld" }, h("span", { class: "lab" }, "Repository on the Hub"), repo), lock,
    files, problem, h("div", { class: "line end" }, go));
  const box = dialog("publish", "Publish to the Hub", form, { onclose: () => { turn++; } });

  const wish = () => ({ model: model.handle, repo: repo.value.trim(), private: isPrivate });
  const fail = (error) => problem.replaceChildren(...(error ? [note(error)] : []));

  function change() {
    turn++;
    plan = null;
    fail(null);
    showPlan();
  }

  function showPlan() {
    const total = plan?.files.reduce((sum, [, size]) => sum + size, 0);
    files.replaceChildren(...(plan ? [h("table", { class: "tbl" },
      h("caption", { class: "meta" }, `To ${repo.value.trim()}, ${plan.private ? "private" : "public"}: ${plan.files.length} files, ${bytes(total)}`),
      h("thead", {}, h("tr", {}, ["File", "Size"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, plan.files.map(([name, size]) => h("tr", {}, h("td", { class: "mono" }, name), h("td", {}, bytes(size))))))] : []));
    go.textContent = plan ? "Publish" : "List what is sent";
    go.disabled = !repo.value.trim() || Boolean(plan?.obstacle);
    if (plan?.obstacle) fail({ title: "Nothing can be sent from here.", text: plan.obstacle });
  }

  async function submit() {
    if (go.disabled) return;
    const mine = ++turn;
    go.disabled = true;
    const answer = await post(plan ? "api/publish" : "api/publish/plan", wish());
    if (mine !== turn) return;
    fail(answer.error);
    if (answer.job) {
      started(answer.job);
      box.close();
      return;
    }
    if (!answer.error) plan = answer;
    showPlan();
  }

  return {
    node: box.node,
    show() {
      ({ model } = session.facts);
      about.textContent = `${model.name} goes to the Hub with its card. The token is the server's own; nothing is sent before you have seen the list.`;
      change();
      box.show();
    },
  };
}
