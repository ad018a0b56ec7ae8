// The dialog behind the model chip: the card of the model that is shown, and what else can be opened.

import { get } from "./ask.js";
import { dialog, progressBar } from "./dialog.js";
import { bytes, count, h, note, seconds } from "./dom.js";
import { opening, openModel, stop } from "./opening.js";
import { doors, session } from "./session.js";

const GROUPS = { embedded: "Embedded", runs: "Runs", bundles: "Bundles here", cached: "Cached", curated: "Curated" };

function parameters(n) {
  if (n === null) return "";
  return n >= 1e6 ? `${(n / 1e6).toFixed(n < 1e7 ? 1 : 0)} M parameters` : `${count(n / 1e3)} k parameters`;
}

function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.map(([name, value]) => [h("dt", {}, name), h("dd", {}, typeof value === "number" ? count(value) : value)]));
}

export function picker() {
  let groups = {};
  let typed = null; // what the text field has sent
  const rows = new Map(); // source -> {node, slot}

  // ---- the card
  const name = h("h3", { class: "name" });
  const hashes = h("div");
  const told = h("div", { class: "told" });
  const give = h("button", { type: "button", class: "btn", onclick: () => doors.remember() });
  const publish = h("button", { type: "button", class: "btn", onclick: () => doors.publish() }, "Publish…");
  const more = h("details", { class: "fold", open: !matchMedia("(max-width: 640px)").matches }, h("summary", {}, "Card"), told, hashes);
  const card = h("section", { class: "modelcard", "aria-label": "The model that is shown" }, h("span", { class: "lab" }, "Shown now"), name,
    h("div", { class: "line" }, give, publish), more);

  // ---- the list
  const filter = h("input", { type: "text", placeholder: "Filter", "aria-label": "Filter the models", oninput: showList });
  const source = h("input", { type: "text", class: "mono", placeholder: "hub:OWNER/NAME, timm:NAME, random:NAME@SEED, …", "aria-label": "Any source", autocomplete: "off", spellcheck: "false" });
  const slot = h("div", { class: "slot" });
  const any = h("form", { class: "any", onsubmit: (event) => {
    event.preventDefault();
    typed = source.value.trim();
    if (typed) choose(typed, typed);
  } }, h("span", { class: "lab" }, "Any source"), h("div", { class: "line" }, source, h("button", { type: "submit", class: "btn" }, "Open")), slot);
  const list = h("div", { class: "list", role: "group", "aria-label": "Models" });
  const box = dialog("models", "Models", h("div", { class: "cols" }, card, h("section", { class: "shelf", "aria-label": "Open another model" }, any, filter, list)), {
    wide: true,
    onclose: () => { typed = null; if (opening.problem) opening.forget(); },
  });

  async function choose(wanted, title) {
    if (wanted === session.facts.model?.source) { stop(); box.close(); return; }
    if (wanted !== typed) typed = null;
    if (!await openModel(wanted, { title })) return;
    source.value = "";
    if (box.isOpen) box.close();
  }

  function row(entry) {
    const size = entry.cached ? "" : `to download, ${bytes(entry.nbytes)}`;
    const meta = [parameters(entry.parameters), entry.cached && entry.nbytes ? bytes(entry.nbytes) : "", entry.licence, entry.note].filter(Boolean).join(" · ");
    const where = h("div", { class: "slot" });
    const button = h("button", { type: "button", class: "row", onclick: () => choose(entry.source, entry.title) },
      h("b", {}, entry.title), h("span", { class: "meta where" }, entry.cached ? "here" : size), h("span", { class: "meta" }, meta));
    const node = h("li", {}, button, where);
    rows.set(entry.source, { node, button, slot: where });
    return node;
  }

  async function load() {
    const answer = await get("api/models");
    if (answer.error) { list.replaceChildren(note(answer.error)); return; }
    ({ groups } = answer);
    any.hidden = !answer.typed;
    showList();
  }

  function showList() {
    const asked = filter.value.trim().toLowerCase();
    rows.clear();
    const parts = Object.entries(GROUPS).flatMap(([group, title]) => {
      const found = (groups[group] ?? []).filter((entry) => `${entry.title} ${entry.source} ${entry.note}`.toLowerCase().includes(asked));
      return found.length ? [h("h3", {}, title), h("ul", {}, found.map(row))] : [];
    });
    list.replaceChildren(...(parts.length ? parts : [h("p", { class: "meta" }, "No model in the list has this in its name.")]));
    showOpening();
  }

  // ---- what is on its way stands in its own line
  const words = h("span");
  const time = h("span", { class: "meta" });
  const bar = progressBar("Opening the model");
  const loading = h("div", { class: "loading", role: "status" }, h("div", { class: "line spread" }, words, time), bar.node,
    h("div", { class: "line spread" }, h("span", { class: "meta" }, "The model that is shown stays until this one is there."), h("button", { type: "button", class: "btn small", onclick: stop }, "Cancel")));

  function showOpening() {
    const current = session.facts.model?.source;
    for (const [known, { button }] of rows) button.setAttribute("aria-current", String(known === current));
    const { now, problem } = opening;
    const place = (wanted) => (wanted === typed ? slot : rows.get(wanted)?.slot);
    slot.replaceChildren();
    for (const one of rows.values()) one.slot.replaceChildren();
    if (now) {
      words.textContent = now.words;
      time.textContent = seconds((performance.now() - now.since) / 1000);
      bar.show(now.done, now.total);
      place(now.source)?.replaceChildren(loading);
    } else if (problem) place(problem.source)?.replaceChildren(note(problem));
  }
  setInterval(() => { if (box.isOpen && opening.now) time.textContent = seconds((performance.now() - opening.now.since) / 1000); }, 100);

  opening.hear(showOpening);
  session.hear(() => {
    const { model, public: isPublic } = session.facts;
    if (!model) return;
    name.textContent = model.name;
    told.replaceChildren(facts(model.facts));
    hashes.replaceChildren(h("h3", {}, "Hashes"), facts(model.hashes.map(([what, value]) => [what, h("code", {}, value)])));
    give.textContent = model.memory ? "Give it a new memory" : "Give it a memory";
    give.hidden = isPublic;
    publish.hidden = !model.publishable;
    showOpening();
  });
  return { node: box.node, show() { box.show(); load(); } };
}
