// The memory as a map. Coordinates and one colour byte a slot travel once; everything else happens on the canvas.

import { get, post } from "./ask.js";
import { drawRamp } from "./colormap.js";
import { commandLine, count, h, note, save, segmented, shellWord, toggle } from "./dom.js";
import { cardPlace, mapCanvas } from "./mapcanvas.js";
import { doors, line, session, whileVisible, writeLink } from "./session.js";
import { unpack } from "./wire.js";

const COLOURED = 7; // categories with a colour of their own
const LISTED = 60; // tiles of a selection, and rows of a legend
const LOOK_MS = 2000;
const SPACES = { memory: "Memory", embedding: "Embedding" };
const SIMILAR = "similarity";

export function mount({ element, props, trigger, watch }) {
  const look = { space: "memory", by: null, pinned: null, mode: "pan" };
  let map = null; // {model, space, key, facts, slots (Uint32Array), colours: {name: {values, facts}}}
  let asked = null; // {model, space}: the map under way
  let problem = null;
  let picked = []; // categories that have a colour, by its number
  let chosen = null; // {words, slots}: a selection
  let placed = null; // {handle, key of the map, values, facts}: the tray's picture on it
  let wished = null; // the picture whose place is under way
  let tickets = 0;
  let linked = session.link.get("tab") === "memory" && session.link.get("panel") === "map" ? session.link : null;

  // ---- what stands where
  const canvas = mapCanvas({ hover: showHover, pick: (index) => pin(index === null ? null : map.slots[index]), select: (found) => choose(`${count(found.length)} slots inside`, found), clear: clearAll, mode: (name) => { look.mode = name; mode.press(name); } });
  const hover = h("div", { class: "hovercard", hidden: true, "aria-hidden": "true" });
  const mode = segmented("Drag", [["pan", "Pan"], ["lasso", "Lasso"], ["box", "Box"]], "pan", (name) => { look.mode = name; mode.press(name); canvas.mode(name); });
  const space = segmented("Space", Object.entries(SPACES), "memory", (name) => { look.space = name; clearAll(); wish(); });
  const by = h("select", { "aria-label": "Colour by", onchange: () => colourBy(by.value) });
  const words = h("input", { type: "text", placeholder: "Slot, class or name", "aria-label": "Find slots", autocomplete: "off", spellcheck: "false" });
  const find = h("form", { class: "line", role: "search", onsubmit: (event) => { event.preventDefault(); search(); } }, words, h("button", { type: "submit", class: "btn" }, "Find"));
  const density = toggle("Density", false, (on) => canvas.density(on ? "on" : "auto"));
  const png = h("button", { type: "button", class: "btn", onclick: async () => { const blob = await canvas.png(); if (blob) save(blob, "map.png"); } }, "PNG");
  const legend = h("section", { "aria-label": "Colours" });
  const pinned = h("section", { "aria-label": "Pinned slot", "aria-live": "polite" });
  const picks = h("section", { "aria-label": "Selection" });
  const meta = h("p", { class: "meta" });
  const fitting = h("div", { class: "fitting", "aria-live": "polite" });
  const command = commandLine();
  const loading = h("div", { class: "load", role: "status", hidden: true });
  const state = h("div", { class: "blank", hidden: true });
  const view = h("div", { class: "mapv" },
    h("div", { class: "toolbar" }, mode.node, h("label", { class: "fld" }, h("span", { class: "lab" }, "Colour by"), by), space.node, find, density, png),
    h("div", { class: "mapgrid" }, h("div", { class: "mapstage" }, canvas.node, loading, hover, meta, fitting), h("aside", { "aria-label": "About the map" }, legend, pinned, picks)),
    command.node);
  element.append(view, state);

  // ---- bringing the map
  function wish() {
    const { model } = session.facts;
    if (session.ready && model.memory) {
      if (linked) restore();
      if (!model.memory.spaces.includes(look.space)) look.space = model.memory.spaces[0];
      const isKnown = (one) => one && one.model === model && one.space === look.space;
      if (!isKnown(asked) && !isKnown(map) && !isKnown(problem)) bringMap(model, look.space);
      else if (isKnown(map)) placePicture();
    }
    showState();
  }
  function restore() {
    look.space = linked.get("space") in SPACES ? linked.get("space") : look.space;
    look.by = linked.get("by");
    const slot = Number(linked.get("slot"));
    look.pinned = linked.has("slot") && Number.isInteger(slot) && slot >= 0 ? slot : null;
    linked = null;
  }
  const path = (part = "") => `api/map/${map.model.handle}/${map.space}${part}`;

  async function bringMap(model, inSpace) {
    const mine = asked = { model, space: inSpace, since: performance.now() };
    problem = null;
    showState();
    try {
      const facts = await get(`api/map/${model.handle}/${inSpace}`);
      if (facts.error) throw facts.error;
      const next = { model, space: inSpace, key: facts.key, facts, colours: {} };
      const response = await fetch(`api/map/${model.handle}/${inSpace}/${facts.key}/points`);
      if (!response.ok) throw { title: "The map did not arrive.", text: (await response.json()).error };
      const { arrays } = unpack(await response.arrayBuffer());
      if (asked !== mine) return;
      next.slots = slotsOf(arrays.has, arrays.x.length);
      map = { ...next, x: arrays.x, y: arrays.y };
      asked = placed = null;
      chosen = null;
      canvas.show({ x: arrays.x, y: arrays.y, ids: map.slots });
      const names = facts.colours.map(([name]) => name);
      await colourBy(names.includes(look.by) ? look.by : names[0]);
      if (look.pinned !== null) pin(look.pinned);
      placePicture();
    } catch (error) {
      if (asked !== mine) return;
      asked = null;
      problem = { model, space: inSpace, told: error.title ? error : { title: "The map did not arrive.", text: error.message || "Try again." } };
    }
    showState();
  }
  function slotsOf(bits, n) { // the slot of each point
    if (!bits) return Uint32Array.from({ length: n }, (_, i) => i);
    const slots = new Uint32Array(n);
    for (let slot = 0, i = 0; i < n; slot++) if (bits[slot >> 3] >> (slot & 7) & 1) slots[i++] = slot;
    return slots;
  }

  // ---- colours
  async function colourBy(name) {
    const mine = map;
    look.by = name;
    if (name !== SIMILAR && !mine.colours[name]) {
      const response = await fetch(path(`/${mine.key}/colour/${name}`));
      if (mine !== map) return;
      if (!response.ok) { session.fail({ title: "The colours did not arrive.", text: (await response.json()).error }); return; }
      const { arrays, facts } = unpack(await response.arrayBuffer());
      if (mine !== map) return;
      mine.colours[name] = { values: arrays.values, facts };
    }
    if (look.by !== name) return;
    const { facts } = colouring();
    picked = facts.kind === "category" ? facts.names.slice(0, COLOURED).map((_, i) => i + 1) : [];
    paint();
  }
  const colouring = () => (look.by === SIMILAR ? placed : map.colours[look.by]);
  function paint() {
    const it = colouring();
    if (!it) return;
    if (it.facts.kind === "scale") canvas.colour({ kind: "scale", values: it.values, palette: look.by === "age" ? "age" : "cividis" });
    else {
      const palette = new Uint8Array(256);
      picked.forEach((category, number) => { if (category !== null) palette[category] = number + 1; });
      canvas.colour({ kind: "category", values: it.values, palette });
    }
    canvas.marks({ labels: it.facts.kind === "category" ? labels(it) : [] });
    showLegend(it.facts);
    keepLink();
  }
  function labels({ values, facts }) { // the name of each coloured category, at its middle
    const { x, y } = map;
    return picked.filter((category) => category !== null).map((category) => {
      const [xs, ys] = [[], []];
      for (let i = 0; i < values.length; i++) if (values[i] === category) { xs.push(x[i]); ys.push(y[i]); }
      const middle = (all) => Float64Array.from(all).sort()[all.length >> 1];
      return { x: middle(xs), y: middle(ys), text: facts.names[category - 1] };
    });
  }

  function showLegend(facts) {
    by.replaceChildren(...map.facts.colours.map(([name, text]) => h("option", { value: name }, text)), ...(placed ? [h("option", { value: SIMILAR }, "Similarity to the picture")] : []));
    by.value = look.by;
    const title = by.selectedOptions[0]?.textContent ?? "";
    const head = (text) => h("div", { class: "head" }, h("h2", {}, title), h("span", { class: "meta" }, text));
    if (facts.kind === "scale") {
      const ramp = h("canvas", { "aria-hidden": "true" });
      const ends = [facts.low, facts.high].map((v) => (Number.isInteger(v) ? count(v) : v.toFixed(2)));
      legend.replaceChildren(head(facts.words), h("div", { class: "scale meta" }, h("span", {}, ends[0]), ramp, h("span", {}, ends[1])));
      requestAnimationFrame(() => { if (canvas.levels) drawRamp(ramp, canvas.levels); });
      return;
    }
    const rows = facts.names.slice(0, LISTED).map((name, i) => {
      const number = picked.indexOf(i + 1);
      return h("button", { type: "button", class: "row legendrow", "aria-pressed": String(number >= 0), onclick: () => toggleCategory(i + 1) },
        h("i", { class: `dot c${number + 1}` }), h("span", {}, name), h("span", { class: "meta" }, count(facts.counts[i])));
    });
    const rest = facts.names.length - rows.length;
    legend.replaceChildren(head("slots"), h("div", { class: "rows" }, rows), ...(rest > 0 ? [h("p", { class: "meta" }, `${rest} smaller ones in grey`)] : []));
  }
  function toggleCategory(category) {
    const at = picked.indexOf(category);
    if (at >= 0) picked[at] = null;
    else {
      const free = picked.indexOf(null);
      if (free >= 0) picked[free] = category;
      else if (picked.length < COLOURED) picked.push(category);
      else picked = [...picked.slice(1), category]; // the one that was coloured first gives way
    }
    paint();
  }

  // ---- the tray's picture on the map
  const questions = line(({ since, ...question }) => trigger("asked", question));
  function placePicture() {
    const { handle } = session;
    if (!map || !handle || wished === `${handle} ${map.key}` || (placed?.handle === handle && placed.key === map.key)) return;
    wished = `${handle} ${map.key}`;
    questions.ask({ model: map.model.handle, handle, space: map.space, ticket: ++tickets, since: performance.now() });
  }
  watch("value", async () => {
    const answer = JSON.parse(JSON.stringify(props.value ?? {}));
    const question = questions.settle(answer.ticket);
    if (!question || !map || wished !== `${question.handle} ${map.key}`) return;
    if (answer.error) { session.fail(answer.error); return; }
    const mine = map;
    const response = await fetch(`api/placed/${answer.key}`);
    if (!response.ok || mine !== map) return;
    const { arrays, facts } = unpack(await response.arrayBuffer());
    if (mine !== map) return;
    placed = { handle: question.handle, key: map.key, values: arrays.values, facts };
    canvas.marks({ cross: { x: facts.x, y: facts.y } });
    if (look.by === SIMILAR) paint();
    else showLegend(colouring().facts);
    tell();
  });

  // ---- hover, pin, selection
  const classOf = (index) => {
    const it = map.colours.class;
    return it && it.values[index] ? it.facts.names[it.values[index] - 1] ?? "another class" : null;
  };
  const thumb = (slot) => h("img", { src: `api/thumb/${map.model.handle}/${slot}`, alt: "", loading: "lazy", onerror: (event) => event.target.replaceWith(h("span", { class: "meta" }, "picture not kept")) });
  function showHover(index, at) {
    hover.hidden = index === null || matchMedia("(max-width: 640px)").matches;
    if (index === null) return;
    const slot = map.slots[index];
    hover.replaceChildren(h("div", { class: "pic" }, thumb(slot)), h("dl", { class: "facts" }, [["Slot", count(slot)], ...(classOf(index) ? [["Class", classOf(index)]] : [])].map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
    const box = canvas.node.getBoundingClientRect();
    const { left, top } = cardPlace(at.x - box.left, at.y - box.top, hover.offsetWidth, hover.offsetHeight, box.width, box.height);
    Object.assign(hover.style, { left: `${left}px`, top: `${top}px` });
    if (look.pinned === null) canvas.describe(`Map of ${count(map.slots.length)} slots. Slot ${slot}${classOf(index) ? `, ${classOf(index)}` : ""}. Enter pins it.`);
  }

  async function pin(slot) {
    look.pinned = slot;
    keepLink();
    if (slot === null) {
      pinned.replaceChildren();
      canvas.marks({ pinned: null, links: [] });
      return;
    }
    const mine = map;
    const card = await get(`api/slots/${mine.model.handle}/${mine.space}/${slot}`);
    if (mine !== map || look.pinned !== slot) return;
    if (card.error) { pinned.replaceChildren(note(card.error)); look.pinned = null; return; }
    canvas.marks({ pinned: canvas.find(slot), links: placesOf(card.neighbours.map((one) => one.slot)) });
    const age = card.last_step - card.step;
    const pairs = [["Slot", count(card.slot)], ["Class", card.class_name ?? "none known"], ["Image", card.image_id < 0 ? "unknown" : count(card.image_id)], ["Source", card.uri ?? "unknown"],
      ["Written", card.step < 0 ? "before training" : `step ${count(card.step)}${age > 0 ? `, ${count(age)} steps ago` : ""}`], ["Overwritten in", `${count(card.overwritten_in)} keys`],
      ["Crop", card.box ? card.box.map((v) => v.toFixed(2)).join(" · ") : "not kept"], ["Space", SPACES[card.space].toLowerCase()], ["Bundle", card.bundle_hash?.slice(0, 12) ?? "none"]];
    const tile = (one) => h("button", { type: "button", class: "mini", "aria-label": `Slot ${one.slot}, cosine ${one.score.toFixed(3)}${one.class_name ? `, ${one.class_name}` : ""}`, onclick: () => { pin(one.slot); for (const index of placesOf([one.slot])) canvas.goTo(index); } }, thumb(one.slot), h("span", { class: "meta" }, one.score.toFixed(3)));
    pinned.replaceChildren(h("div", { class: "card" }, h("div", { class: "head" }, h("h3", {}, `Slot ${count(slot)}`), h("button", { type: "button", class: "btn quiet small", onclick: () => pin(null) }, "Unpin")),
      h("div", { class: "pinhead" }, h("div", { class: "pic" }, thumb(slot)), h("dl", { class: "facts" }, pairs.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]))),
      h("div", { class: "head" }, h("h3", {}, "Nearest"), h("span", { class: "meta" }, `${SPACES[card.space].toLowerCase()} space, exact`)), h("div", { class: "minis" }, card.neighbours.map(tile))));
    canvas.describe(`Map of ${count(map.slots.length)} slots. Pinned: slot ${slot}${card.class_name ? `, ${card.class_name}` : ""}; white lines lead to its ${card.neighbours.length} nearest slots.`);
  }

  const placesOf = (slots) => slots.map(canvas.find).filter((index) => index !== null); // of those that have a point

  function choose(told, indices) {
    chosen = { words: told, slots: Array.from(indices, (index) => map.slots[index]) };
    const mask = new Uint8Array(map.slots.length);
    for (const index of indices) mask[index] = 1;
    canvas.dim(indices.length ? mask : null);
    const files = ["csv", "parquet", "zip"].map((kind) => h("button", { type: "button", class: "btn small", disabled: !chosen.slots.length, onclick: () => take(kind) }, kind.toUpperCase()));
    picks.replaceChildren(h("div", { class: "head" }, h("h2", {}, told), h("button", { type: "button", class: "btn quiet small", onclick: clearChosen }, "Clear")), h("div", { class: "line" }, files),
      h("div", { class: "minis" }, chosen.slots.slice(0, LISTED).map((slot) => h("button", { type: "button", class: "mini", "aria-label": `Slot ${slot}`, onclick: () => pin(slot) }, thumb(slot), h("span", { class: "meta mono" }, count(slot))))),
      ...(chosen.slots.length > LISTED ? [h("p", { class: "meta" }, `The first ${LISTED}; a file holds all.`)] : []));
  }
  function clearChosen() {
    chosen = null;
    picks.replaceChildren();
    if (map) canvas.dim(null);
  }
  function clearAll() {
    clearChosen();
    if (map && look.pinned !== null) pin(null);
  }
  async function search() {
    const asks = words.value.trim();
    if (!map) return;
    if (!asks) { clearChosen(); return; }
    const found = await get(`api/slots/${map.model.handle}?words=${encodeURIComponent(asks)}`);
    if (found.error) { session.fail(found.error); return; }
    const indices = placesOf(found.slots);
    choose(`${count(found.count)} ${found.count === 1 ? "slot" : "slots"} for “${asks}”`, indices);
    if (indices.length === 1) { pin(map.slots[indices[0]]); canvas.goTo(indices[0]); }
  }
  async function take(kind) {
    const response = await fetch(`api/slots/${map.model.handle}/export`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ slots: chosen.slots, kind }) });
    if (response.ok) save(await response.blob(), `slots.${kind}`);
    else session.fail({ title: "The file did not arrive.", text: "Choose fewer slots, then try again." });
  }

  // ---- fitting
  let looking;
  async function fit(fast) {
    const answer = await post("api/map/fit", { model: map.model.handle, space: map.space, fast });
    if (answer.error) { session.fail(answer.error); return; }
    map.facts.job = answer.job;
    doors.jobs?.();
    tell();
  }
  async function lookAgain() { // a fit under way: its map takes the place of this one
    const mine = map;
    const facts = await get(path());
    if (mine !== map || facts?.error) return;
    if (facts.key !== map.key) bringMap(map.model, map.space);
    else { map.facts = facts; tell(); }
  }
  function tell() {
    const { facts, slots, model } = map;
    const { parameters: made } = facts;
    const isFitted = Object.keys(made).length > 0;
    meta.textContent = [`${count(slots.length)} of ${count(facts.slots)} slots shown`, facts.last_step > 0 ? `snapshot at step ${count(facts.last_step)}` : "",
      isFitted ? `UMAP, ${made.n_neighbors} neighbours, ${made.seed === null ? "no seed" : `seed ${made.seed}`}${made.trustworthiness ? `, trustworthiness ${Number(made.trustworthiness).toFixed(2)}` : ""}` : "first two principal components",
      "near points are alike; distances between groups mean little", placed ? "the cross is the picture above, placed by its neighbours: approximate" : ""].filter(Boolean).join(" · ");
    command.text = `python -m analysis map ${shellWord(model.typed)} --space ${map.space} --html map.html`;
    clearTimeout(looking);
    if (facts.job) {
      fitting.replaceChildren(h("span", { class: "meta" }, "A UMAP is being fitted; it takes the place of this map by itself."));
      looking = setTimeout(lookAgain, LOOK_MS);
    } else if (!isFitted && !session.facts.public) {
      fitting.replaceChildren(h("button", { type: "button", class: "btn pri", onclick: () => fit(false) }, "Fit with UMAP"), h("button", { type: "button", class: "btn", onclick: () => fit(true) }, "Fast preview"));
    } else fitting.replaceChildren();
  }
  function keepLink() {
    if (!map || element.offsetParent === null) return;
    writeLink({ tab: "memory", panel: "map", space: look.space === map.model.memory.spaces[0] ? null : look.space, by: look.by === map.facts.colours[0]?.[0] ? null : look.by, slot: look.pinned });
  }

  // ---- states
  function showState() {
    const { facts } = session;
    const { model } = facts;
    const has = facts.state === "ready" && model.memory;
    const failed = problem && problem.model === model && problem.space === look.space ? problem.told : null;
    view.hidden = !has || Boolean(failed);
    state.hidden = !view.hidden;
    loading.hidden = !asked;
    if (asked) loading.replaceChildren(h("span", {}, `Laying out ${count(model.memory.slots)} slots`), h("span", { class: "meta" }, map ? "The previous map stays until the new one is there." : "The map appears here."));
    if (state.hidden) {
      space.press(look.space);
      space.node.hidden = model.memory.spaces.length < 2;
      if (map) tell();
      return;
    }
    const give = h("button", { type: "button", class: "btn pri", onclick: () => doors.remember() }, "Give it a memory");
    state.replaceChildren(...(failed ? [note(failed)] : facts.state === "failed" ? [note(facts)] : facts.state === "starting" ? [h("p", {}, "Opening the model"), h("p", { class: "meta" }, "The map appears by itself.")]
      : [h("p", {}, `${model.name} has no memory, so there is no map of it.`), ...(facts.public ? [] : [give])]));
  }

  whileVisible(element, wish);
}
