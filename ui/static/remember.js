// "Give it a memory": which pictures, what that takes, and the job that does it.

import { get, post } from "./ask.js";
import { dialog } from "./dialog.js";
import { bytes, count, duration, h, icon, note, segmented } from "./dom.js";
import { session } from "./session.js";

const MAX_UPLOADS = 200;
const REST_MS = 400; // after the last keystroke

export function rememberDialog({ upload, started }) {
  let model = null; // as it was when the dialog opened: another may come meanwhile
  let kind = "folder";
  let at = { root: "", path: "" };
  let files = [];
  let needed = null; // what the server said of the wish on screen
  let turn = 0;
  let isBusy = false;

  const about = h("p");
  const kinds = h("div");
  const roots = h("select", { "aria-label": "Folder", onchange: () => enter(roots.value, "") });
  const crumbs = h("div", { class: "crumbs" });
  const folders = h("ul", { class: "folders" });
  const drawn = h("input", { type: "number", min: "1", max: "100000", value: "1000", oninput: rest });
  const hub = h("input", { type: "text", class: "mono", placeholder: "OWNER/NAME, if need be :SPLIT", autocomplete: "off", spellcheck: "false", oninput: rest });
  const chooser = h("input", { type: "file", multiple: true, accept: "image/*", class: "file", tabindex: "-1", "aria-hidden": "true", onchange: () => { files = [...chooser.files]; showFiles(); ask(); } });
  const chosen = h("span", { class: "meta" });
  const panels = {
    folder: h("div", { class: "browse" }, h("div", { class: "line" }, roots, crumbs), folders),
    drawn: h("label", { class: "fld" }, h("span", { class: "lab" }, "Pictures of the drawn gallery"), drawn),
    hub: h("label", { class: "fld" }, h("span", { class: "lab" }, "Data set on the Hub"), hub),
    uploads: h("div", { class: "line" }, h("button", { type: "button", class: "btn", onclick: () => chooser.click() }, "Choose pictures"), chooser, chosen),
  };
  const slots = h("input", { type: "number", min: "1", max: "131072", placeholder: "all", oninput: rest });
  const name = h("input", { type: "text", maxlength: "80", autocomplete: "off", spellcheck: "false", oninput: () => { name.dataset.own = name.value ? "yes" : ""; showButton(); } });
  const need = h("dl", { class: "facts need" });
  const problem = h("div", { class: "slot", "aria-live": "polite" });
  const words = h("span", { class: "meta", role: "status" });
  const go = h("button", { type: "submit", class: "btn pri" }, "Give it a memory");
  const form = h("form", { class: "cardbody", onsubmit: (event) => { event.preventDefault(); start(); } },
    about, h("div", { class: "fld" }, h("span", { class: "lab" }, "Pictures from"), kinds), ...Object.values(panels),
    h("div", { class: "two" },
      h("label", { class: "fld" }, h("span", { class: "lab" }, "Pictures, at most"), slots),
      h("label", { class: "fld" }, h("span", { class: "lab" }, "Name of the new bundle"), name)),
    need, problem, h("div", { class: "line spread" }, words, go));
  const box = dialog("remember", "Give it a memory", form, { onclose: () => { turn++; } });

  // ---- where the pictures come from
  function choose(which) {
    kind = which;
    for (const [one, panel] of Object.entries(panels)) panel.hidden = one !== kind;
    choices.press(kind);
    if (kind === "folder") enter(at.root || roots.value, at.path);
    else ask();
  }

  let choices;
  function offer() {
    const { roots: names, offline } = session.facts;
    const offered = [...(names.length ? [["folder", "Folder"]] : []), ["drawn", "Drawn gallery"], ...(offline ? [] : [["hub", "Hub data set"]]), ["uploads", "Upload"]];
    choices = segmented("Pictures from", offered, kind, choose);
    kinds.replaceChildren(choices.node, ...(names.length ? [] : [h("p", { class: "meta" }, "To choose a folder here, start the page with ", h("code", {}, "--root photos=DIR"), ".")]));
    roots.replaceChildren(...names.map((one) => h("option", { value: one }, one)));
    roots.hidden = names.length < 2;
    if (!offered.some(([one]) => one === kind)) kind = offered[0][0];
  }

  async function enter(root, path) {
    at = { root, path };
    needed = null;
    showNeed();
    const answer = await get(`api/folders?root=${encodeURIComponent(root)}&path=${encodeURIComponent(path)}`);
    if (kind !== "folder" || at.root !== root || at.path !== path) return;
    if (answer.error) { fail(answer.error); return; }
    const steps = path ? path.split("/") : [];
    crumbs.replaceChildren(...[root, ...steps].map((step, i, all) =>
      i === all.length - 1 ? h("b", {}, step) : h("button", { type: "button", class: "btn quiet small", onclick: () => enter(root, steps.slice(0, i).join("/")) }, step, " /")));
    const here = answer.pictures ? `${count(answer.pictures)} picture${answer.pictures > 1 ? "s" : ""} here` : "no pictures directly here";
    folders.replaceChildren(
      ...answer.folders.map((one) => h("li", {}, h("button", { type: "button", class: "row", onclick: () => enter(root, [...steps, one].join("/")) }, icon("folder"), h("span", {}, one)))),
      h("li", { class: "meta" }, [here, answer.more ? `${count(answer.more)} more folders are not listed` : ""].filter(Boolean).join(" · ")));
    ask();
  }

  function showFiles() {
    const over = files.length > MAX_UPLOADS ? `, of which the first ${MAX_UPLOADS} are taken` : "";
    chosen.textContent = files.length ? `${count(files.length)} chosen${over}` : `up to ${MAX_UPLOADS}`;
    files = files.slice(0, MAX_UPLOADS);
  }

  function data() {
    if (kind === "folder") return { kind, ...at };
    if (kind === "drawn") return { kind, count: Number(drawn.value) };
    if (kind === "hub") return { kind, name: hub.value.trim() };
    return { kind, count: files.length };
  }
  const isTold = () => ({ folder: at.root, drawn: drawn.value > 0, hub: hub.value.trim(), uploads: files.length })[kind];
  const wish = () => ({ model: model.handle, data: data(), slots: Number(slots.value) || null });

  // ---- what it takes
  let timer;
  function rest() {
    clearTimeout(timer);
    needed = null;
    showNeed();
    timer = setTimeout(ask, REST_MS);
  }

  async function ask() {
    clearTimeout(timer);
    const mine = ++turn;
    needed = null;
    fail(null);
    showNeed();
    if (!isTold()) return;
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
      if (kind === "uploads") asked.data.uploads = await sendAll();
      const answer = await post("api/remember", asked);
      if (answer.error) { fail(answer.error); return; }
      started(answer.job);
      files = [];
      chooser.value = "";
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
    for (const file of files) {
      words.textContent = `Sending pictures: ${sent.length} of ${files.length}`;
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
      offer();
      showFiles();
      box.show();
      choose(kind);
    },
  };
}
