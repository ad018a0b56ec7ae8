// "Give it a memory": which pictures, what that takes, and the job that does it.

import { post } from "./ask.js";
import { dialog } from "./dialog.js";
import { bytes, count, duration, h, note } from "./dom.js";
import { session } from "./session.js";
import { sources } from "./sources.js";

const REST_MS = 400; // after the last keystroke

export function rememberDialog({ upload, started }) {
  let model = null; // as it was when the dialog opened: another may come meanwhile
  let needed = null; // what the server said of the wish on screen
  let turn = 0;
  let isBusy = false;

  const about = h("p");
  const from = sources({ kinds: ["folder", "drawn", "hub", "uploads"], left: leave, chosen: ask, typed: rest, failed: fail });
  const slots = h("input", { type: "number", min: "1", max: "131072", placeholder: "all", oninput: rest });
  const name = h("input", { type: "text", maxlength: "80", autocomplete: "off", spellcheck: "false", oninput: () => { name.dataset.own = name.value ? "yes" : ""; showButton(); } });
  const need = h("dl", { class: "facts need" });
  const problem = h("div", { class: "slot", "aria-live": "polite" });
  const words = h("span", { class: "meta", role: "status" });
  const go = h("button", { type: "submit", class: "btn pri" }, "Give it a memory");
  const form = h("form", { class: "cardbody", onsubmit: (event) => { event.preventDefault(); start(); } },
    about, ...from.nodes,
    h("div", { class: "two" },
      h("label", { class: "fld" }, h("span", { class: "lab" }, "Pictures, at most"), slots),
      h("label", { class: "fld" }, h("span", { class: "lab" }, "Name of the new bundle"), name)),
    need, problem, h("div", { class: "line spread" }, words, go));
  const box = dialog("remember", "Give it a memory", form, { onclose: () => { turn++; } });

  const wish = () => ({ model: model.handle, data: from.data(), slots: Number(slots.value) || null });

  // ---- what it takes
  let timer;
  function leave() {
    clearTimeout(timer);
    turn++;
    needed = null;
    words.textContent = "";
    showNeed();
  }
  function rest() {
    leave();
    timer = setTimeout(ask, REST_MS);
  }

  async function ask() {
    leave();
    const mine = turn;
    fail(null);
    if (!from.isTold) return;
    words.textContent = "Looking at the pictures…";
    const answer = await post("api/remember/need", wish());
    if (mine !== turn) return;
    words.textContent = "";
    if (answer.error) { fail(answer.error); return; }
    needed = answer;
    if (!name.dataset.own) name.value = needed.name;
    showNeed();
  }

  function showNeed() {
    const lines = needed ? [
      ["Pictures found", needed.pictures === null ? "not told by the Hub" : count(needed.pictures)],
      ["Slots to fill", `${needed.pictures === null ? "at most " : ""}${count(needed.slots)}`],
      ["Time", `about ${duration(needed.seconds)} once it has started`],
      ["Size of the bundle", `about ${bytes(needed.nbytes)}`],
    ] : ["Pictures found", "Slots to fill", "Time", "Size of the bundle"].map((one) => [one, "–"]);
    need.replaceChildren(...lines.flatMap(([what, value]) => [h("dt", {}, what), h("dd", {}, value)]));
    showButton();
  }
  function showButton() {
    go.disabled = isBusy || !needed || !name.value.trim();
  }
  function fail(error) {
    problem.replaceChildren(...(error ? [note(error)] : []));
    if (error) words.textContent = "";
  }

  // ---- doing it
  async function start() {
    if (go.disabled) return;
    isBusy = true;
    showButton();
    fail(null);
    const asked = { ...wish(), name: name.value.trim() };
    try {
      if (asked.data.kind === "uploads") asked.data.uploads = await sendAll();
      const answer = await post("api/remember", asked);
      if (answer.error) { fail(answer.error); return; }
      started(answer.job);
      from.clearFiles();
      box.close();
    } catch {
      fail({ title: "The pictures did not arrive.", text: "The upload was interrupted or refused. Try again." });
    } finally {
      isBusy = false;
      words.textContent = "";
      showButton();
    }
  }

  async function sendAll() {
    const sent = [];
    for (const file of from.files) {
      words.textContent = `Sending pictures: ${sent.length} of ${from.files.length}`;
      const { path } = await upload(file);
      sent.push({ path, name: file.name });
    }
    return sent;
  }

  return {
    node: box.node,
    show() {
      ({ model } = session.facts);
      const what = model.memory ? "Give it a new memory" : "Give it a memory";
      box.title = go.textContent = what;
      about.textContent = `${model.name} will keep what it makes of each picture, with a small copy to show. The result is a new bundle, and it opens here when it is ready.`;
      name.dataset.own = name.value = "";
      box.show();
      from.show(session.facts);
    },
  };
}
