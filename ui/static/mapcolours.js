// How the map is coloured: the choice, the legend whose rows light up and grey out, and the names that stand on the map.

import { drawRamp } from "./colormap.js";
import { count, h, slider } from "./dom.js";

const COLOURED = 7; // categories with a colour of their own
const LISTED = 60; // rows of the legend
const OF_PICTURE = { similarity: "Similarity to the picture", agreement: "Student and teacher" };
const STALE = "stale";
const TOGETHER = 0.6; // how far, of what all points are, those of a named category are from their middle
const CUT_MS = 250; // a slider that rests as long is meant
const cosineAt = (step) => 1 - 10 ** -(1 + step / 20); // as ui/colours.py offers them
const stepOf = (cosine) => Math.round(20 * (-Math.log10(1 - cosine) - 1));

const median = (values) => Float64Array.from(values).sort()[values.length >> 1];
// [x, y] of the middle of points, and how far they are from it
function middle(x, y) {
  const [left, top] = [median(x), median(y)];
  return [left, top, median(Float64Array.from(x, (at, i) => Math.hypot(at - left, y[i] - top)))];
}

// `hear`: {bring(name, threshold) -> {values, facts} or null, changed()}
export function mapColours(canvas, hear) {
  let map = null; // {facts, slots, x, y, isStale(slot)}
  let kept = {}; // colourings by name
  let placed = {}; // those of the tray's picture
  let by = null;
  let wished = null; // what a link names and is not there yet
  let picked = []; // categories that have a colour, by its number
  let far = null; // how far all points are from their middle
  let listed = null; // the choices that `select` has
  let tickets = 0; // of the colourings asked for: only the last one counts

  const select = h("select", { "aria-label": "Colour by", onchange: () => choose(select.value) });
  const title = h("h2");
  const told = h("span", { class: "meta" });
  const body = h("div");
  let resting;
  const cut = slider("Duplicates from cosine", { min: 0, max: 80, value: 0, words: (step) => cosineAt(step).toFixed(5), oninput: (step) => {
    tickets++; // what is under way is for where it was
    clearTimeout(resting);
    resting = setTimeout(() => choose("duplicates", cosineAt(step)), CUT_MS);
  } });
  const legend = h("section", { "aria-label": "Colours" }, h("div", { class: "head" }, title, told), cut.node, body);
  cut.node.hidden = true;

  const offered = () => [...map.facts.colours, ...(map.facts.since.overwritten ? [[STALE, "Overwritten since"]] : []), ...Object.keys(placed).map((name) => [name, OF_PICTURE[name]])];
  const isOffered = (name) => offered().some(([one]) => one === name);
  const colouring = () => placed[by] ?? kept[by];

  function staleSlots() {
    const values = Uint8Array.from(map.slots, (slot) => (map.isStale(slot) ? 1 : 0));
    return { values, facts: { kind: "category", names: [`overwritten since step ${count(map.facts.last_step)}`], counts: [values.reduce((sum, one) => sum + one, 0)], words: "slots" } };
  }

  async function choose(name, threshold = null) {
    const mine = ++tickets;
    clearTimeout(resting);
    wished = null;
    if (name === STALE) kept[STALE] = staleSlots();
    else if (threshold !== null || !(placed[name] ?? kept[name])) {
      const into = kept;
      const found = await hear.bring(name, threshold);
      if (found && threshold === null) into[name] ??= found; // for later, if another one was chosen meanwhile
      if (mine !== tickets) return;
      if (!found) { // what is on screen stays
        if (by) {
          select.value = by;
          if (by === "duplicates") cut.value = stepOf(kept.duplicates.facts.threshold);
        } else if (name !== offered()[0][0]) await choose(offered()[0][0]);
        return;
      }
      kept[name] = found;
    }
    by = name;
    const { facts } = colouring();
    picked = facts.kind === "category" ? facts.names.slice(0, COLOURED).map((_, i) => i + 1) : [];
    paint();
  }

  function paint() {
    const { values, facts } = colouring();
    if (facts.kind === "scale") canvas.colour({ kind: "scale", values, palette: by === "age" ? "age" : "cividis", none: facts.none });
    else {
      const palette = new Uint8Array(256);
      picked.forEach((category, number) => { if (category !== null) palette[category] = number + 1; });
      canvas.colour({ kind: "category", values, palette });
    }
    canvas.marks({ labels: facts.kind === "category" && by !== "agreement" && by !== "duplicates" ? labels(values, facts) : [] });
    showLegend(facts);
    hear.changed();
  }

  // The name of each coloured category, at its middle; none for one that is spread as far as the map is
  function labels(values, facts) {
    const { x, y } = map;
    far ??= middle(x, y)[2];
    facts.middles ??= {};
    return picked.filter((category) => category !== null).flatMap((category) => {
      const isOf = (_, i) => values[i] === category;
      const [left, top, wide] = facts.middles[category] ??= middle(x.filter(isOf), y.filter(isOf));
      return wide < TOGETHER * far ? [{ x: left, y: top, text: facts.names[category - 1] }] : [];
    });
  }

  function showChoices() {
    const choices = JSON.stringify(offered());
    if (choices === listed) return; // it may be open
    listed = choices;
    const chosen = select.value;
    select.replaceChildren(...offered().map(([name, text]) => h("option", { value: name }, text)));
    select.value = isOffered(chosen) ? chosen : by;
  }
  function showLegend(facts) {
    showChoices();
    select.value = by;
    title.textContent = select.selectedOptions[0]?.textContent ?? "";
    told.textContent = facts.words ?? "slots";
    cut.node.hidden = by !== "duplicates";
    if (by === "duplicates") cut.value = stepOf(facts.threshold);
    if (facts.kind === "scale") return showScale(facts);
    const rows = facts.names.slice(0, LISTED).map((name, i) => {
      const number = picked.indexOf(i + 1);
      return h("button", { type: "button", class: "row legendrow", "aria-pressed": String(number >= 0), onclick: () => toggleCategory(i + 1) },
        h("i", { class: `dot c${number + 1}` }), h("span", {}, name), h("span", { class: "meta" }, count(facts.counts[i])));
    });
    const rest = (facts.groups ?? facts.names.length) - rows.length;
    const has = body.querySelector(".rows");
    const at = has && title.dataset.by === by ? has.scrollTop : 0;
    const focused = [...body.querySelectorAll(".legendrow")].indexOf(document.activeElement);
    body.replaceChildren(h("div", { class: "rows" }, rows), ...(rest > 0 ? [h("p", { class: "meta" }, `${count(rest)} smaller ones in grey`)] : []), ...(rows.length ? [] : [h("p", { class: "meta" }, "None.")]));
    body.querySelector(".rows").scrollTop = at;
    rows[focused]?.focus({ preventScroll: true });
    title.dataset.by = by;
  }
  function showScale(facts) {
    const ramp = h("canvas", { "aria-hidden": "true" });
    const [low, high] = [facts.low, facts.high];
    const digits = Math.abs(high - low) < 0.05 ? 4 : 2;
    const ends = [low, high].map((v) => (Number.isInteger(v) ? count(v) : v.toFixed(digits)));
    body.replaceChildren(h("div", { class: "scale meta" }, h("span", {}, ends[0]), ramp, h("span", {}, ends[1])), ...(facts.none ? [h("p", { class: "meta" }, "Grey: its class, or that of its neighbours, is not known.")] : []));
    requestAnimationFrame(() => { if (canvas.levels) drawRamp(ramp, canvas.levels); });
  }
  function toggleCategory(category) {
    if (!colouring()) return;
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

  return {
    select,
    legend,
    get name() { return wished ?? by; },
    get isFirst() { return this.name === map.facts.colours[0][0]; },
    // another map; `name` is the colouring wished for
    async show(next, name) {
      [map, kept, placed, by, far] = [next, {}, {}, null, null];
      const shown = choose(isOffered(name) ? name : offered()[0][0]);
      wished = Object.hasOwn(OF_PICTURE, name) ? name : null;
      await shown;
    },
    // the facts of this map have changed
    refresh() {
      if (by === STALE && !isOffered(STALE)) choose(offered()[0][0]);
      else if (by === STALE) {
        const now = staleSlots();
        if (now.facts.counts[0] === kept[STALE].facts.counts[0]) return;
        kept[STALE] = now;
        paint();
      } else showChoices();
    },
    // colourings of the tray's picture
    place(colours) {
      placed = colours;
      const name = wished;
      wished = null;
      if (placed[name]) choose(name);
      else if (placed[by]) paint();
      else if (by in OF_PICTURE) choose(offered()[0][0]);
      else {
        showChoices();
        if (name) hear.changed();
      }
    },
    classOf(index) { // null where it is not known
      const it = kept.class;
      return it && it.values[index] ? it.facts.names[it.values[index] - 1] ?? "another class" : null;
    },
  };
}
