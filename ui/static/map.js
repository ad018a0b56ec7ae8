// The memory as a map. Coordinates and one colour byte a slot travel once; everything else happens on the canvas.

import { get, post } from "./ask.js";
import { questions } from "./asking.js";
import { commandLine, count, h, note, save, segmented, shellWord, toggle } from "./dom.js";
import { cardPlace, mapCanvas } from "./mapcanvas.js";
import { mapColours } from "./mapcolours.js";
import { SPACES, pinnedCard, selection, thumbnail } from "./mapslots.js";
import { opening } from "./opening.js";
import { doors, session, whileVisible, writeLink } from "./session.js";
import { unpack } from "./wire.js";

const LOOK_MS = 2000; // between two looks at a fit
const RUN_MS = 6000; // and at a run that goes on

// {arrays, facts}, or {error}
async function bring(url, title) {
  const response = await fetch(url).catch(() => null);
  const data = response?.ok ? await response.arrayBuffer().catch(() => null) : null;
  if (data) return unpack(data);
  const told = await response?.json().catch(() => null);
  return { error: { title, text: told?.error ?? "The server does not answer; try again." } };
}

export function mount({ element, props, trigger, watch }) {
  const look = { space: "memory", by: null, pinned: null };
  let map = null; // {model, space, key, facts, slots (Uint32Array), x, y, pictured (bits), isStale(slot)}
  let asked = null; // {model, space}: the map under way
  let problem = null;
  let chosen = null; // slots of a selection
  let placed = null; // {handle, key of the map}: the tray's picture that is on it
  let wished = null; // the picture whose place is under way
  let linked = session.link.get("tab") === "memory" && session.link.get("panel") === "map" ? session.link : null;

  // ---- what stands where
  const canvas = mapCanvas({
    hover: showHover,
    pick: (index) => pin(index === null ? null : map.slots[index]),
    select: (found) => choose(`${count(found.length)} slots inside`, found),
    picture: (index) => urlAt(index),
    clear: clearAll,
    mode: (name) => mode.press(name),
  });
  const colours = mapColours(canvas, { bring: bringColours, changed: keepLink });
  const hover = h("div", { class: "hovercard", hidden: true, "aria-hidden": "true" });
  const mode = segmented("Drag", [["pan", "Pan"], ["lasso", "Lasso"], ["box", "Box"]], "pan", (name) => { mode.press(name); canvas.mode(name); });
  const space = segmented("Space", Object.entries(SPACES), "memory", (name) => { look.space = name; clearAll(); wish(); });
  const words = h("input", { type: "text", placeholder: "Slot, class or name", "aria-label": "Find slots", autocomplete: "off", spellcheck: "false" });
  const find = h("form", { class: "line", role: "search", onsubmit: (event) => { event.preventDefault(); search(); } }, words, h("button", { type: "submit", class: "btn" }, "Find"));
  const density = toggle("Density", false, (on) => canvas.density(on ? "on" : "auto"));
  const pictures = toggle("Pictures", true, (on) => canvas.pictures(on));
  const png = h("button", { type: "button", class: "btn", onclick: async () => { const blob = await canvas.png(); if (blob) save(blob, "map.png"); } }, "PNG");
  const pinned = h("section", { "aria-label": "Pinned slot", "aria-live": "polite" });
  const picks = h("section", { "aria-label": "Selection" });
  const meta = h("p", { class: "meta" });
  const fitting = h("div", { class: "fitting", "aria-live": "polite" });
  const command = commandLine();
  const loading = h("div", { class: "load", role: "status", hidden: true });
  const state = h("div", { class: "blank", hidden: true });
  const view = h("div", { class: "mapv" },
    h("div", { class: "toolbar" }, mode.node, h("label", { class: "fld" }, h("span", { class: "lab" }, "Colour by"), colours.select), space.node, find, pictures, density, png),
    h("div", { class: "mapgrid" }, h("div", { class: "mapstage" }, canvas.node, loading, hover, meta, fitting), h("aside", { "aria-label": "About the map" }, colours.legend, pinned, picks)),
    command.node);
  element.append(view, state);

  // ---- bringing the map
  const isAwaited = () => Boolean(linked && opening.now && session.link.has("model") && session.link.get("model") !== session.facts.model?.source); // the model of the link is still on its way
  function wish() {
    const { model } = session.facts;
    if (session.ready && model.memory && !isAwaited()) {
      if (linked) restore();
      if (!model.memory.spaces.includes(look.space)) look.space = model.memory.spaces[0];
      const isKnown = (one) => one && one.model === model && one.space === look.space;
      if (!isKnown(asked) && !isKnown(map) && !isKnown(problem)) bringMap(model, look.space);
      else if (isKnown(map)) {
        if (!isKnown(asked)) asked = null; // back from a map that is not there yet
        placePicture();
      }
    }
    showState();
  }
  function restore() {
    look.space = linked.get("space") in SPACES ? linked.get("space") : look.space;
    look.by = linked.get("by");
    const slot = Number(linked.get("slot"));
    const { source, typed } = session.facts.model;
    const isOfThis = !linked.has("model") || [source, typed].includes(linked.get("model")); // it may have failed to open
    look.pinned = linked.has("slot") && isOfThis && Number.isInteger(slot) && slot >= 0 ? slot : null;
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
      const { arrays, error } = await bring(`api/map/${model.handle}/${inSpace}/${facts.key}/points`, "The map did not arrive.");
      if (error) throw error;
      if (asked !== mine) return;
      const slots = slotsOf(arrays.has, arrays.x.length);
      const isSame = map?.model === model && map.space === inSpace; // a fit has ended: what was chosen stays chosen
      if (map && map.model.handle !== model.handle) look.pinned = null;
      map = { model, space: inSpace, key: facts.key, facts, slots, ...arrays, isStale: (slot) => (slot - map.facts.cursor + facts.slots) % facts.slots < map.facts.since.keys };
      placed = wished = null;
      canvas.show({ x: arrays.x, y: arrays.y, ids: slots });
      if (chosen && isSame) choose(chosen.words, placesOf(chosen.slots));
      else clearChosen();
      canvas.marks({ cross: null });
      await colours.show(map, look.by);
      if (asked !== mine) return;
      asked = null;
      pin(look.pinned);
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

  async function bringColours(name, threshold) {
    const mine = map;
    const { arrays, facts, error } = await bring(path(`/${map.key}/colour/${name}${threshold === null ? "" : `?threshold=${threshold.toFixed(7)}`}`), "The colours did not arrive.");
    if (!error) return { values: arrays.values, facts };
    if (mine === map) session.fail(error);
    return null;
  }

  // ---- the tray's picture on the map
  const line = questions({ props, trigger, watch });
  async function placePicture() {
    const { handle } = session;
    if (!map || !handle || wished === `${handle} ${map.key}`) return;
    const mine = map;
    const asking = wished = `${handle} ${map.key}`;
    if (placed?.handle === handle && placed.key === map.key) return;
    const answer = await line.ask({ model: map.model.handle, handle, space: map.space });
    if (!answer || mine !== map || wished !== asking) return;
    const { arrays, facts, error } = answer.error ? answer : await bring(`api/placed/${answer.key}`, "The picture's place did not arrive.");
    if (mine !== map || wished !== asking) return;
    if (error) {
      session.fail(error);
      wished = null; // not before: it would be asked for again at once
      return;
    }
    placed = { handle, key: map.key };
    canvas.marks({ cross: { x: facts.x, y: facts.y } });
    colours.place(Object.fromEntries(Object.entries(arrays).map(([name, values]) => [name, { values, facts: facts.colours[name] }])));
    tell();
  }

  // ---- hover, pin, selection
  const urlAt = (index) => (map.pictured[index >> 3] >> (index & 7) & 1 ? `api/thumb/${map.model.handle}/${map.slots[index]}` : null);
  const urlOf = (slot) => {
    const index = canvas.find(slot);
    return index === null ? null : urlAt(index);
  };
  function showHover(index, at) {
    hover.hidden = index === null || matchMedia("(max-width: 640px)").matches;
    if (index === null) return;
    const slot = map.slots[index];
    const known = colours.classOf(index);
    const pairs = [["Slot", count(slot)], ...(known ? [["Class", known]] : []), ...(map.isStale(slot) ? [["Overwritten", "since this snapshot"]] : [])];
    hover.replaceChildren(h("div", { class: "pic" }, thumbnail(urlAt(index))), h("dl", { class: "facts" }, pairs.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
    const box = canvas.node.getBoundingClientRect();
    const { left, top } = cardPlace(at.x - box.left, at.y - box.top, hover.offsetWidth, hover.offsetHeight, box.width, box.height);
    Object.assign(hover.style, { left: `${left}px`, top: `${top}px` });
    if (look.pinned === null) canvas.describe(`Map of ${count(map.slots.length)} slots. Slot ${slot}${known ? `, ${known}` : ""}. Enter pins it.`);
  }

  async function pin(slot) {
    look.pinned = slot;
    keepLink();
    if (slot === null) {
      pinned.replaceChildren();
      canvas.marks({ pinned: null, links: [] });
      canvas.describe(`Map of ${count(map.slots.length)} slots. Arrow keys move it, plus and minus zoom, Enter pins the nearest point, L starts a lasso.`);
      return;
    }
    const mine = map;
    const card = await get(`api/slots/${mine.model.handle}/${mine.space}/${slot}`);
    if (mine !== map || look.pinned !== slot) return;
    if (card.error) { pinned.replaceChildren(note(card.error)); look.pinned = null; return; }
    canvas.marks({ pinned: canvas.find(slot), links: placesOf(card.neighbours.map((one) => one.slot)) });
    pinned.replaceChildren(pinnedCard(card, { unpin: () => pin(null), go: (to) => { pin(to); for (const index of placesOf([to])) canvas.goTo(index); } }));
    canvas.describe(`Map of ${count(map.slots.length)} slots. Pinned: slot ${slot}${card.class_name ? `, ${card.class_name}` : ""}; white lines lead to its ${card.neighbours.length} nearest slots.`);
  }

  const placesOf = (slots) => slots.map(canvas.find).filter((index) => index !== null); // of those that have a point

  function choose(told, indices) {
    chosen = { words: told, slots: Array.from(indices, (index) => map.slots[index]) };
    const mask = new Uint8Array(map.slots.length);
    for (const index of indices) mask[index] = 1;
    canvas.dim(indices.length ? mask : null);
    picks.replaceChildren(...selection(told, chosen.slots, { urlOf, pin, take, clear: clearChosen }));
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
    const more = found.count > found.slots.length ? ` of ${count(found.count)}` : "";
    choose(`${count(indices.length)}${more} ${indices.length === 1 ? "slot" : "slots"} for “${asks}”`, indices);
    if (indices.length === 1) { pin(map.slots[indices[0]]); canvas.goTo(indices[0]); }
  }
  async function take(kind) {
    const response = await fetch(`api/slots/${map.model.handle}/export`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ slots: chosen.slots, kind }) });
    if (response.ok) save(await response.blob(), `slots.${kind}`);
    else session.fail({ title: "The file did not arrive.", text: "Choose fewer slots, then try again." });
  }

  // ---- fitting
  let looking;
  let fittingTold = null; // what `fitting` was made for
  async function fit(fast) {
    const answer = await post("api/map/fit", { model: map.model.handle, space: map.space, fast });
    if (answer.error) { session.fail(answer.error); return; }
    map.facts.job = answer.job;
    doors.jobs?.();
    tell();
  }
  async function lookAgain() { // a fit under way: its map takes the place of this one; a run: more slots are overwritten
    if (document.hidden) { looking = setTimeout(lookAgain, LOOK_MS); return; }
    const mine = map;
    const facts = await get(path());
    if (mine !== map || asked) return;
    if (facts.error) looking = setTimeout(lookAgain, RUN_MS);
    else if (facts.key !== map.key) bringMap(map.model, map.space);
    else {
      map.facts = facts;
      colours.refresh();
      tell();
    }
  }
  function tell() {
    const { facts, slots, model } = map;
    const { parameters: made } = facts;
    const isFitted = Object.keys(made).length > 0;
    meta.textContent = [`${count(slots.length)} of ${count(facts.slots)} slots shown`, facts.last_step > 0 ? `snapshot at step ${count(facts.last_step)}` : "",
      facts.since.steps > 0 ? `the run has gone on for ${count(facts.since.steps)} steps and overwritten ${count(facts.since.overwritten)} of these slots` : "",
      isFitted ? `UMAP, ${made.n_neighbors} neighbours, ${made.seed === null ? "no seed" : `seed ${made.seed}`}${made.trustworthiness ? `, trustworthiness ${Number(made.trustworthiness).toFixed(3)}` : ""}` : "first two principal components",
      "near points are alike; distances between groups mean little", placed ? "the cross is the picture above, placed by its neighbours: approximate" : ""].filter(Boolean).join(" · ");
    command.text = `python -m analysis map ${shellWord(model.typed)} --space ${map.space} --html map.html`;
    clearTimeout(looking);
    if (facts.job || (facts.since.is_running && element.offsetParent !== null)) looking = setTimeout(lookAgain, facts.job ? LOOK_MS : RUN_MS);
    const told = JSON.stringify([Boolean(facts.job), isFitted || Boolean(session.facts.public), facts.problem]);
    if (told === fittingTold) return; // a button of it may have the focus, and an alert is read once
    fittingTold = told;
    if (facts.job) fitting.replaceChildren(h("span", { class: "meta" }, "A UMAP is being fitted; it takes the place of this map by itself."));
    else if (!isFitted && !session.facts.public) {
      fitting.replaceChildren(h("button", { type: "button", class: "btn pri", onclick: () => fit(false) }, "Fit with UMAP"), h("button", { type: "button", class: "btn", onclick: () => fit(true) }, "Fast preview"),
        ...(facts.problem ? [note({ title: "The last fit failed.", text: facts.problem })] : []));
    } else fitting.replaceChildren();
  }
  function keepLink() {
    if (!map) return;
    look.by = colours.name;
    if (element.offsetParent === null) return;
    writeLink({ tab: "memory", panel: "map", space: look.space === map.model.memory.spaces[0] ? null : look.space, by: colours.isFirst ? null : look.by, slot: look.pinned });
  }

  // ---- states
  function showState() {
    const { facts } = session;
    const { model } = facts;
    const has = facts.state === "ready" && model.memory && !isAwaited();
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
    state.replaceChildren(...(failed ? [note(failed)] : facts.state === "failed" ? [note(facts)] : facts.state === "starting" || isAwaited() ? [h("p", {}, "Opening the model"), h("p", { class: "meta" }, "The map appears by itself.")]
      : [h("p", {}, `${model.name} has no memory, so there is no map of it.`), ...(facts.public ? [] : [give])]));
  }

  whileVisible(element, wish);
}
