// The memory turning: its ring with the cursor, and its slots on a map in fixed axes with a slider over the snapshots.

import { count, h, onTheme, slider } from "./dom.js";
import { drawRamp } from "./colormap.js";
import { mapCanvas } from "./mapcanvas.js";

const PLAY_MS = 700;
const NOISE = "c4"; // as a colour of the map
const FRESH = "accent";
const FRESH_LEVEL = 255; // ages end below it
const MOST_FRESH = 8; // of the ring at most this part is highlighted: snapshots may lie more than a turn apart
const RING_PX = 168;
const RIM_PX = 18;
const WHOLE = [0, 0, 65535, 65535]; // the fixed axes

// How long ago each slot was written, in keys: 0 for the one before the cursor
export const keysAgo = (slots, cursor, total) => Uint32Array.from(slots, (slot) => (cursor - 1 - slot + 2 * total) % total);

// The levels of the map's colours [M], and how many are highlighted: those that are fresh, but at most the newest eighth
export function levelsOf({ age, fresh }, ago, total) {
  const most = fresh.reduce((sum, on) => sum + (on ? 1 : 0), 0) > fresh.length / MOST_FRESH ? total / MOST_FRESH : Infinity;
  let shown = 0;
  const levels = Uint8Array.from(age, (value, i) => {
    if (!value) return 0;
    if (fresh[i] && ago[i] < most) { shown++; return FRESH_LEVEL; }
    return Math.min(value, FRESH_LEVEL - 1);
  });
  return { levels, shown, isCut: most < Infinity };
}

// A turn of the ring as colours: keys from oldest to newest end at the cursor; what was never written is noise
function drawRing(canvas, { total, written }, mark, ink) {
  const ratio = Math.min(2, devicePixelRatio);
  Object.assign(canvas, { width: RING_PX * ratio, height: RING_PX * ratio });
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const [middle, radius] = [RING_PX / 2, RING_PX / 2 - RIM_PX / 2 - 6];
  const [top, round] = [-Math.PI / 2, 2 * Math.PI];
  const [at, share] = [(written % total) / total, Math.min(1, written / total)];
  const arc = (from, to, colour, width = RIM_PX) => {
    context.beginPath();
    context.arc(middle, middle, radius, top + from * round, top + to * round);
    Object.assign(context, { strokeStyle: colour, lineWidth: width });
    context.stroke();
  };
  arc(0, 1, ink.noise);
  const begin = share < 1 ? 0 : at; // the oldest key
  const gradient = context.createConicGradient(top + begin * round, middle, middle);
  gradient.addColorStop(0, ink.old);
  gradient.addColorStop(Math.max(share, 1e-6), ink.text);
  gradient.addColorStop(1, ink.text);
  if (written) arc(0, share, gradient);
  const tick = (where, colour, length, width) => {
    const [cos, sin] = [Math.cos(top + where * round), Math.sin(top + where * round)];
    for (const [paint, wide] of [[ink.bg, width + 3], [colour, width]]) {
      context.beginPath();
      context.moveTo(middle + (radius - length) * cos, middle + (radius - length) * sin);
      context.lineTo(middle + (radius + length) * cos, middle + (radius + length) * sin);
      Object.assign(context, { strokeStyle: paint, lineWidth: wide, lineCap: "round" });
      context.stroke();
    }
  };
  if (mark !== null) tick((mark % total) / total, ink.muted, RIM_PX / 2, 1.5);
  tick(at, ink.accent, RIM_PX / 2 + 3, 3);
}

function inksOf(node) {
  const style = getComputedStyle(node);
  const [bg, text, muted, accent, noise, grey] = ["bg", "text", "muted", "accent", NOISE, "c0"].map((name) => style.getPropertyValue(`--ui-${name}`).trim());
  return { bg, text, muted, accent, noise, old: `color-mix(in srgb, ${grey} 70%, ${bg})` };
}

// `pick(step)`: the slider stands at another snapshot
export function turningMemory({ pick }) {
  let store = null;
  let steps = [];
  let current = null; // the snapshot that is chosen
  let axes = null; // the snapshot whose principal components the map has
  let map = null; // {step, facts, slots, ago}
  let newest = null; // facts of the latest snapshot that was brought
  let live = { total: 0, written: 0, batch: 1, step: 0 };
  let timer = null;

  // ---- what stands where
  const ring = h("canvas", { class: "ring", role: "img", "aria-label": "Ring of the memory" });
  const turn = h("b");
  const facts = h("dl", { class: "facts" });
  const canvas = mapCanvas({ isPassed: true, mode: () => canvas.mode("pan"), hover: tellSlot }); // nothing is chosen here
  const ramp = h("canvas", { "aria-hidden": "true" });
  const freshWords = h("span");
  const legend = h("div", { class: "agekey meta" }, h("span", {}, h("i", { class: "dot noise" }), "noise"), h("span", {}, "oldest", ramp, "newest"), h("span", {}, h("i", { class: "dot fresh" }), freshWords));
  const time = slider("Snapshot", { min: 0, max: 0, value: 0, words: (i) => (steps.length ? `step ${count(steps[i])}` : "none yet"), oninput: (i) => { halt(); pick(steps[i]); } });
  const play = h("button", { type: "button", class: "btn", onclick: () => (timer ? halt() : run()) }, "Play");
  const refit = h("button", { type: "button", class: "btn", onclick: () => { axes = current; draw(); } }, "Axes of this step");
  const words = h("p", { class: "meta" });
  const slot = h("p", { class: "meta slotwords", "aria-live": "off" });
  const stage = h("div", { class: "turnstage" }, canvas.node, legend, h("div", { class: "timeline" }, time.node, play, refit), words, slot);
  const aside = h("div", { class: "turnside" }, h("div", { class: "ringbox" }, h("div", { class: "ringface" }, ring, h("span", { class: "inring" }, h("span", { class: "meta" }, "turn"), turn)), facts));
  const node = h("section", { "aria-label": "Memory" }, h("div", { class: "head" }, h("h2", {}, "The memory turning"), h("span", { class: "meta" }, "a ring of keys: the oldest is overwritten first")), h("div", { class: "turning" }, stage, aside));

  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const offerPlay = () => { play.hidden = calm.matches; if (calm.matches) halt(); };
  calm.addEventListener("change", offerPlay);
  offerPlay();

  // ---- playing
  function run() {
    play.textContent = "Pause";
    if (current === steps.at(-1)) pick(steps[0]);
    const next = async () => {
      const mine = timer;
      await drawn;
      if (timer !== mine || document.hidden) return;
      const at = steps.indexOf(current) + 1;
      if (at >= steps.length) { halt(); return; }
      pick(steps[at]);
      if (at === steps.length - 1) halt();
      else timer = setTimeout(next, PLAY_MS);
    };
    timer = setTimeout(next, PLAY_MS);
  }
  function halt() {
    clearTimeout(timer);
    timer = null;
    play.textContent = "Play";
  }

  // ---- the map
  let drawn = Promise.resolve();
  function draw() {
    refit.disabled = current === null || axes === current;
    if (current === null) return;
    drawn = bringMap(store, current, axes);
  }
  async function bringMap(from, step, of) {
    const isWished = () => from === store && step === current && of === axes;
    const answer = await from.get(step, `/map?axes=${of}`);
    if (!isWished()) return;
    if (answer.error) {
      if (of !== step && !steps.includes(of)) { axes = steps.at(-1); draw(); return; } // that snapshot was thinned out
      words.textContent = `${answer.error.title} ${answer.error.text}`;
      return;
    }
    const { facts: told, arrays } = answer;
    const { slots } = arrays;
    const ago = keysAgo(slots, told.cursor, told.total);
    const isFirst = !map;
    if (!newest || told.step > newest.step) newest = told;
    map = { step, facts: told, slots, ago };
    const { levels, shown, isCut } = levelsOf(arrays, ago, told.total);
    canvas.show({ x: arrays.x, y: arrays.y, ids: slots, box: WHOLE });
    if (isFirst) canvas.fit(); // where an earlier run was looked at says nothing of this one
    stage.classList.remove("unfilled");
    canvas.colour({ kind: "scale", palette: "age", values: levels, own: { 0: NOISE, [FRESH_LEVEL]: FRESH } });
    if (canvas.levels) drawRamp(ramp, canvas.levels);
    freshWords.textContent = isCut ? "written last" : `written since step ${count(told.before)}`;
    legend.lastChild.hidden = !shown;
    legend.firstChild.hidden = !arrays.age.includes(0);
    words.textContent = [`${count(slots.length)} of ${count(told.total)} slots shown`, `snapshot at step ${count(step)}`, `cursor at slot ${count(told.cursor)}`, `first two principal components of step ${count(of)}`].join(" · ");
    canvas.describe(`Map of ${count(slots.length)} memory slots at step ${count(step)}, coloured by age${shown ? `; ${count(shown)} of them newly written` : ""}. Arrow keys move it, plus and minus zoom.`);
    drawLive();
  }
  function tellSlot(index) {
    if (index === null || !map) { slot.textContent = ""; return; }
    const [number, ago, written] = [map.slots[index], map.ago[index], map.facts.written];
    slot.textContent = `slot ${count(number)}: ${ago >= written ? "noise" : `written ${count(ago)} keys before the cursor, ${count(Math.floor(ago / live.batch))} steps old`}`;
  }

  // ---- the ring
  function drawLive() {
    const { total, batch } = live;
    if (!total) return;
    const written = newest && newest.step >= live.step ? newest.written : live.written; // a snapshot counts exactly
    drawRing(ring, { total, written }, map && map.facts.written !== written ? map.facts.cursor : null, inksOf(node));
    const [at, filled] = [written % total, Math.min(1, written / total)];
    turn.textContent = count(Math.floor(written / total) + 1);
    const pairs = [["Slots", count(total)], ["Cursor", `slot ${count(at)}`], ["Keys written", count(written)], ["Filled", `${(100 * filled).toFixed(filled < 1 ? 1 : 0)} %`], ["A turn takes", `${count(Math.ceil(total / batch))} steps`]];
    facts.replaceChildren(...pairs.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
    ring.setAttribute("aria-label", `Ring of ${count(total)} slots: turn ${turn.textContent}, cursor at slot ${count(at)}, ${(100 * filled).toFixed(0)} per cent filled`);
  }
  onTheme(() => {
    drawLive();
    requestAnimationFrame(() => { if (canvas.levels) drawRamp(ramp, canvas.levels); });
  });

  return {
    node,
    aside,
    halt,
    // all: rising steps of the snapshots; step: the chosen one, or null; now: {total, batch, step, written} as the newest step left the ring
    show(from, all, step, now) {
      if (from !== store) {
        halt();
        store = from;
        map = newest = current = axes = null;
        stage.classList.add("unfilled");
        slot.textContent = words.textContent = "";
      }
      const isOther = step !== current;
      if (step === null) words.textContent = "The first snapshot comes before the first step.";
      [steps, live] = [all, now];
      current = step;
      axes ??= all.at(-1) ?? null;
      time.range(0, Math.max(0, all.length - 1));
      time.value = Math.max(0, all.indexOf(step));
      time.input.disabled = all.length < 2;
      play.disabled = all.length < 2;
      if (isOther || step === null) draw();
      drawLive();
    },
  };
}
