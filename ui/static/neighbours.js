// The neighbours of a picture in the model's memory: the query as the model saw it, tiles, one pinned.

import { questions } from "./asking.js";
import { commandLine, count, h, note, seconds, segmented, shellWord } from "./dom.js";
import { searchWith } from "./searchwith.js";
import { doors, session, whileVisible } from "./session.js";
import { chooseFile } from "./tray.js";

const COUNTS = [10, 20, 50];
const SPACES = { memory: "Memory", embedding: "Embedding" };
const SPACE_WORDS = { // why there is only one of them
  embedding: "This model has no head, so its memory holds embeddings.",
  memory: "This bundle keeps no embeddings of its remembered pictures.",
};

export function mount({ element, props, trigger, watch }) {
  const look = { space: "memory", k: 20, pinned: 0 };
  let found = null; // what the server answered, plus model, handle, space, k
  let asked = null;
  let refused = null;

  const canvas = h("canvas", { role: "img", "aria-label": "Query picture" });
  const queryMeta = h("span", { class: "meta" });
  const space = segmented("Compare in", Object.entries(SPACES), look.space, (name) => { look.space = name; wish(); });
  const spaceMeta = h("span", { class: "meta" });
  const counts = segmented("How many", COUNTS.map((k) => [String(k), String(k)]), "20", (k) => { look.k = Number(k); wish(); });
  const pinned = h("div", { class: "card", "aria-live": "polite" });
  const title = h("h2");
  const titleMeta = h("span", { class: "meta" });
  const tiles = h("div", { class: "tiles" });
  const busy = h("div", { class: "load", role: "status", hidden: true });
  const state = h("div", { class: "blank" });
  const command = commandLine();
  const view = h("div", { class: "nb" },
    h("aside", { "aria-label": "Query" },
      h("div", {}, h("div", { class: "head" }, h("h2", {}, "Query"), queryMeta), h("div", { class: "pic query" }, canvas)),
      h("div", { class: "fld" }, h("span", { class: "lab" }, "Compare in"), space.node, spaceMeta),
      h("div", { class: "fld" }, h("span", { class: "lab" }, "How many"), counts.node),
      pinned),
    h("div", { class: "found" }, h("div", { class: "head" }, title, titleMeta), tiles, busy));
  element.append(view, state, command.node);

  const isWanted = (question) => question && question.model === session.facts.model.handle && question.handle === session.handle && question.space === look.space && question.k === look.k;
  const line = questions({ props, trigger, watch });
  function wish() {
    const { model } = session.facts;
    if (model?.memory && !model.memory.spaces.includes(look.space)) look.space = model.memory.spaces[0] ?? "memory";
    space.press(look.space);
    counts.press(String(look.k));
    if (model && !model.memory) found = asked = null;
    const known = isWanted(asked ?? found) || (session.problem && isWanted(refused));
    if (session.ready && model.memory && session.handle && !known) bring({ model: model.handle, handle: session.handle, space: look.space, k: look.k });
    showState();
  }

  async function bring(question) {
    asked = question;
    const answer = await line.ask(question);
    if (asked !== question) return;
    const shown = session.facts.model;
    if (question.model !== shown.handle) { asked = null; return; } // of a model that is shown no more
    try {
      if (answer.error) throw answer.error;
      const response = await fetch(`api/neighbours/${answer.key}`);
      if (!response.ok) throw { title: "The neighbours did not arrive.", text: (await response.json()).error };
      const result = await response.json();
      if (asked !== question) return;
      found = { ...question, ...result, shown };
      asked = null;
      look.pinned = 0;
      draw();
    } catch (error) {
      if (asked !== question) return;
      asked = null;
      refused = question;
      tiles.querySelectorAll(".skel").forEach((square) => square.remove());
      if (found) { // back to what is shown
        look.space = found.space;
        look.k = found.k;
      }
      session.fail(error.title ? error : { title: "The neighbours did not arrive.", text: "Try again." });
    }
    showState();
  }

  function draw() {
    const { rows, crop, crop_px: px } = found;
    const mine = found;
    const photo = new Image();
    photo.onload = () => { // the square of the picture that the model saw
      if (mine !== found) return;
      const [x0, y0, x1, y1] = crop;
      const [w, h_] = [photo.naturalWidth, photo.naturalHeight];
      canvas.width = canvas.height = 592;
      canvas.getContext("2d").imageSmoothingQuality = "high";
      canvas.getContext("2d").drawImage(photo, x0 * w, y0 * h_, (x1 - x0) * w, (y1 - y0) * h_, 0, 0, 592, 592);
    };
    photo.src = `api/picture/${found.handle}`;
    const name = session.pictures.find((one) => one.handle === found.handle)?.name ?? "picture.png";
    canvas.setAttribute("aria-label", `Query: the centre of ${name}`);
    queryMeta.textContent = `centre crop, ${px} px`;
    const noun = found.space === "memory" ? "nearest memories" : "nearest embeddings of remembered pictures";
    title.textContent = `${rows.length} ${noun}`;
    titleMeta.textContent = [majority(rows), found.space === "memory" ? "memory space" : "embedding space", found.exact ? "exact" : "approximate",
      seconds(found.time_s), found.last_step > 0 ? `snapshot at step ${count(found.last_step)}` : ""].filter(Boolean).join(" · ");
    tiles.replaceChildren(...rows.map(tile));
    command.text = `python -m analysis neighbours ${shellWord(name)} --model ${shellWord(found.shown.typed)} --space ${found.space} --k ${found.k} --json`;
    pin(0);
  }

  function majority(rows) {
    const votes = new Map();
    for (const { class_name: name } of rows) if (name) votes.set(name, (votes.get(name) ?? 0) + 1);
    const best = [...votes].sort((a, b) => b[1] - a[1])[0];
    return best ? `${best[1]} of ${rows.length} ${best[0]}` : "";
  }

  function thumbnail(row) {
    const picture = h("img", { alt: "", loading: "lazy", src: row.thumb });
    const [x0, y0, x1, y1] = row.box ?? [];
    const crop = row.box && h("i", { class: "crop", style: { left: `${100 * x0}%`, top: `${100 * y0}%`, width: `${100 * (x1 - x0)}%`, height: `${100 * (y1 - y0)}%` } });
    return h("div", { class: "pic" }, row.thumb ? [picture, crop] : h("span", { class: "meta none" }, "picture not kept"));
  }

  function tile(row, rank) {
    return h("button", { type: "button", class: "tile", "aria-pressed": "false", onclick: () => pin(rank),
      "aria-label": `Rank ${rank + 1}, score ${row.score.toFixed(3)}, ${row.class_name ?? "no class"}, slot ${row.slot}` },
    thumbnail(row),
    h("span", { class: "sc" }, row.score.toFixed(3), h("i", {}, h("u", { style: { width: `${100 * Math.max(0, row.score)}%` } }))),
    h("span", { class: "meta" }, h("span", {}, row.class_name ?? "no class"), h("span", { class: "mono" }, count(row.slot))));
  }

  function pin(rank) {
    look.pinned = rank;
    [...tiles.children].forEach((node, i) => node.setAttribute("aria-pressed", String(i === rank)));
    const row = found.rows[rank];
    if (!row) return;
    const age = found.last_step - row.step;
    const ago = age > 0 ? `, ${count(age)} ${age === 1 ? "step" : "steps"} ago` : "";
    const written = row.step < 0 ? "before training" : `step ${count(row.step)}${ago}`;
    const pairs = [["Slot", count(row.slot)], ["Cosine", row.score.toFixed(4)], ["Class", row.class_name ?? "none known"],
      ["Image", row.image_id < 0 ? "unknown" : count(row.image_id)], ["Crop", row.box ? row.box.map((v) => v.toFixed(2)).join(" · ") : "not kept"],
      ...(found.last_step > 0 ? [["Written", written]] : []), // one given later was written all at once
      ["Space", SPACES[found.space].toLowerCase()], ["Model", found.shown.name]];
    pinned.replaceChildren(
      h("div", { class: "head" }, h("h3", {}, `Rank ${rank + 1}`), h("span", { class: "meta" }, "pinned")),
      h("dl", { class: "facts" }, pairs.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
      ...(row.thumb ? [searchWith({ slot: row.slot, space: found.space, name: row.class_name ?? `slot ${row.slot}`, thumb: row.thumb })] : []));
  }

  function noMemory(model) {
    const parts = [h("p", {}, `${model.name} has no memory, so there is nothing to compare the picture with.`)];
    if (session.facts.public) return [...parts, h("p", { class: "meta" }, "Choose a model with a memory above.")];
    const give = h("button", { type: "button", class: "btn pri", onclick: () => doors.remember() }, "Give it a memory");
    return [...parts, give, h("p", { class: "meta" }, "A folder of pictures, the drawn gallery, a data set of the Hub, or pictures that you upload.")];
  }

  let slow;
  function showState() {
    const { facts } = session;
    const { model } = facts;
    const nothing = facts.state !== "ready" || !model.memory || !session.handle;
    const pictures = document.getElementById("tray-memory");
    if (pictures) pictures.hidden = facts.state === "ready" && !model.memory; // nothing to choose them for
    view.hidden = nothing;
    command.node.hidden = nothing;
    state.hidden = !nothing;
    if (nothing) {
      state.replaceChildren(...(facts.state === "starting"
        ? [h("p", {}, "Opening the model"), h("p", { class: "meta" }, "It takes a few seconds; the memories appear by themselves.")]
        : facts.state === "failed" ? [note(facts)]
          : !model.memory ? noMemory(model)
            : [h("p", {}, "Choose a picture to see which memories it wakes."), h("button", { type: "button", class: "btn pri", onclick: chooseFile }, "Add a picture")]));
      return;
    }
    for (const name of Object.keys(SPACES)) space.button(name).hidden = !model.memory.spaces.includes(name);
    spaceMeta.textContent = SPACE_WORDS[model.memory.spaces.join()] ?? "";
    pinned.hidden = !found;
    view.classList.remove("old");
    busy.hidden = true;
    clearTimeout(slow);
    if (asked) {
      if (!found) tiles.replaceChildren(...Array.from({ length: look.k }, () => h("div", { class: "skel" })));
      slow = setTimeout(() => {
        view.classList.toggle("old", Boolean(found));
        busy.hidden = false;
        busy.replaceChildren(h("span", {}, `Searching ${count(model.memory.slots)} slots`), h("span", { class: "meta" }, found ? "The previous result stays until the new one is there." : "The memories appear here."));
      }, 150);
    }
  }

  whileVisible(element, wish);
}
