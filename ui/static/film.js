// What a run's snapshots show: eight pinned pictures with the attention on them and the memories they recall, and the crops
// that the model saw.

import { count, h } from "./dom.js";
import { colourPatches } from "./stage.js";
import { unpack } from "./wire.js";

const TILES = 8;
const RECALLED = 5;
const OPACITY = 0.85;
const SILENT = { title: "The snapshot did not arrive.", text: "The server does not answer; try again." };

// {facts, arrays, shapes}, or {error}
export async function bring(url) {
  const response = await fetch(url).catch(() => null);
  if (!response) return { error: SILENT };
  try {
    if (response.ok && !response.headers.get("Content-Type")?.includes("json")) return unpack(await response.arrayBuffer());
    const { error } = await response.json();
    return { error: error?.title ? error : SILENT };
  } catch (reason) {
    return { error: { ...SILENT, ...(reason.message?.includes("newer form") ? { text: reason.message } : {}) } };
  }
}

// The snapshots of one run, each brought once
export function snapshotsOf(name) {
  const known = new Map();
  const url = (step, part = "") => `api/runs/${encodeURIComponent(name)}/snapshots/${step}${part}`;
  return {
    url,
    get(step, part = "") {
      const path = url(step, part);
      if (!known.has(path)) {
        known.set(path, bring(path).then((answer) => {
          if (answer.error) known.delete(path); // it may come at the next asking
          return answer;
        }));
      }
      return known.get(path);
    },
  };
}

// Up to `most` of rising steps, the first and the last among them, as evenly over the run as they allow
export function evenly(steps, most) {
  if (steps.length <= most) return [...steps];
  const [first, last] = [steps[0], steps.at(-1)];
  const chosen = [];
  let from = 0;
  for (let i = 0; i < most; i++) { // enough are left for the tiles that follow
    const wanted = first + ((last - first) * i) / (most - 1);
    let best = from;
    for (let at = from; at <= steps.length - (most - i); at++) if (Math.abs(steps[at] - wanted) < Math.abs(steps[best] - wanted)) best = at;
    chosen.push(steps[best]);
    from = best + 1;
  }
  return chosen;
}

// The weights on the patches of one of the pictures, null where there are none
function attentionOf(which, { facts: { rows, columns, attention_max: most }, arrays }) {
  const patches = rows * columns;
  return arrays.attention ? { rows, columns, weights: Float32Array.from(arrays.attention.subarray(which * patches, (which + 1) * patches), (level) => (level * most[which]) / 255) } : null;
}

// What a view recalled as a row: a small picture, a name, a score
function recalledRow(one, src) {
  const name = one.at < 0 ? "noise" : one.name || `slot ${count(one.slot)}`;
  const picture = one.pictured ? h("img", { src, alt: "", loading: "lazy" }) : h("i", { class: one.at < 0 ? "noise" : "" });
  return h("span", { class: "recall" }, h("span", { class: "thumb" }, picture), h("span", { class: "name" }, name), h("b", {}, one.score.toFixed(3)));
}
const recalledWords = (all) => all.map((one) => `${one.at < 0 ? "noise" : one.name || `slot ${one.slot}`} ${one.score.toFixed(3)}`).join(", ");

// `pick(step)`: a tile was clicked
export function filmStrip({ pick }) {
  const meta = h("span", { class: "meta" });
  const pinned = h("div", { class: "pinned", role: "group", "aria-label": "Picture" });
  const strip = h("div", { class: "film", role: "group", "aria-label": "Film strip" });
  const node = h("section", { "aria-label": "Film strip" }, h("div", { class: "head" }, h("h2", {}, "Film strip"), meta), pinned, strip);
  const tiles = new Map(); // step -> {node, told}
  let store = null;
  let steps = [];
  let current = null; // the step that is chosen
  let picture = 0;
  let pictures = 0; // how many there are

  function makeTile(step) {
    const part = { image: h("img", { alt: "" }), overlay: h("canvas", { "aria-hidden": "true" }), words: h("span", { class: "meta" }, `step ${count(step)}`), recalled: h("span", { class: "recalls" }) };
    part.button = h("button", { type: "button", class: "still", onclick: () => pick(step) }, h("span", { class: "pic" }, part.image, part.overlay), part.words, part.recalled);
    return { node: part.button, part, told: "" };
  }

  async function fill(step, tile) {
    const [mine, which] = [store, picture];
    if (tile.told === `${which}`) return;
    tile.told = `${which}`;
    const answer = await mine.get(step);
    if (mine !== store || which !== picture || tiles.get(step) !== tile) return;
    if (answer.error) {
      tile.told = "";
      tile.part.recalled.replaceChildren(h("span", { class: "meta" }, "did not arrive"));
      return;
    }
    const { facts } = answer;
    if (steps[0] === step || !pictures) choosePictures(facts);
    const { image, overlay, recalled, button } = tile.part;
    const src = mine.url(steps[0], `/picture/${which}`); // the same at every step
    if (image.getAttribute("src") !== src) image.setAttribute("src", src);
    tile.attention = attentionOf(which, answer);
    overlay.hidden = !tile.attention;
    drawOverlays();
    const found = (facts.recalled[which] ?? []).slice(0, RECALLED);
    recalled.replaceChildren(...found.map((one, j) => recalledRow(one, mine.url(step, `/recalled/${which}/${j}`))));
    const strongest = facts.attention_max?.[which];
    button.setAttribute("aria-label", `Step ${step}${Number.isFinite(strongest) ? `: strongest attention ${strongest.toPrecision(2)}` : ""}; recalls ${recalledWords(found) || "nothing"}`);
  }

  // One scale for all tiles, from an even share to the strongest weight of any, but at least to twice an even share: so that
  // attention which prefers nothing looks like it
  function drawOverlays() {
    const all = [...tiles.values()].filter((tile) => tile.attention);
    const memories = "below, the memories it recalls";
    meta.textContent = memories;
    if (!all.length) return;
    const even = Math.max(...all.map(({ attention: { weights } }) => weights.reduce((a, b) => a + b, 0) / weights.length));
    const high = Math.max(2 * even, ...all.map(({ attention: { weights } }) => Math.max(...weights)));
    meta.textContent = `attention in the teacher's last block, mean over heads, from an even share, ${even.toPrecision(2)}, to ${high.toPrecision(2)}; ${memories}`;
    for (const { part: { overlay }, attention: { weights, rows, columns } } of all) {
      const side = 2 * Math.max(48, Math.round(overlay.parentNode.clientWidth || 96));
      Object.assign(overlay, { width: side, height: Math.max(1, Math.round((side * rows) / columns)) });
      const context = overlay.getContext("2d");
      context.imageSmoothingQuality = "high";
      context.drawImage(colourPatches(weights, rows, columns, { low: even, high, alpha: (t) => 255 * OPACITY * (0.22 + 0.78 * t) }), 0, 0, overlay.width, overlay.height);
    }
  }

  function choosePictures(facts) {
    if (pictures === facts.pictures) return;
    pictures = facts.pictures;
    picture = Math.min(picture, Math.max(0, pictures - 1));
    pinned.replaceChildren(...Array.from({ length: pictures }, (_, i) => h("button", {
      type: "button", "aria-pressed": String(i === picture), "aria-label": `Picture ${i + 1}${facts.picture_names[i] ? `, ${facts.picture_names[i]}` : ""}`, title: facts.picture_names[i] || undefined, onclick: () => choose(i),
    }, h("img", { src: store.url(steps[0], `/picture/${i}`), alt: "", loading: "lazy" }))));
  }
  function choose(i) {
    picture = i;
    [...pinned.children].forEach((button, k) => button.setAttribute("aria-pressed", String(k === i)));
    draw();
  }

  function draw() {
    const chosen = evenly(steps, TILES);
    for (const step of tiles.keys()) if (!chosen.includes(step)) tiles.delete(step);
    const nodes = chosen.map((step) => {
      if (!tiles.has(step)) tiles.set(step, makeTile(step));
      const tile = tiles.get(step);
      tile.part.button.setAttribute("aria-pressed", String(step === current));
      fill(step, tile);
      return tile.node;
    });
    while (nodes.length < TILES) nodes.push(strip.querySelectorAll(".blankstill")[TILES - nodes.length - 1] ?? h("span", { class: "blankstill", "aria-hidden": "true" }, h("span", { class: "pic" }))); // so that nothing moves when one more comes
    if (nodes.length !== strip.children.length || nodes.some((one, i) => one !== strip.children[i])) strip.replaceChildren(...nodes);
    if (!steps.length) meta.textContent = "the first snapshot comes before the first step";
  }

  return {
    node,
    show(from, all, step) {
      if (from !== store) {
        store = from;
        tiles.clear();
        pictures = picture = 0;
        pinned.replaceChildren();
      }
      [steps, current] = [all, step];
      draw();
    },
  };
}

// The sheet of views that the model was given at a snapshot
export function cropSheet() {
  const image = h("img", { class: "sheet", hidden: true });
  const words = h("figcaption", { class: "meta" });
  const none = h("div", { class: "none meta" });
  const box = h("div", { class: "pic sheetbox" }, image, none);
  const node = h("figure", { class: "crops" }, h("div", { class: "head" }, h("h2", {}, "What it saw")), box, words);
  let wished = "";

  return {
    node,
    async show(store, step) {
      const mine = step === null ? "" : store.url(step, "/crops");
      if (mine === wished) return;
      wished = mine;
      const answer = mine ? await store.get(step) : { error: {} };
      if (mine !== wished) return;
      const { has_crops: has, views } = answer.facts ?? {};
      box.style.setProperty("--views", views || 4);
      image.hidden = !has;
      none.hidden = Boolean(has);
      none.textContent = answer.error ? "" : "Before the first step nothing has been seen yet.";
      if (has) Object.assign(image, { src: mine, alt: `Views of four pictures of the batch at step ${step}: one picture a row, ${views} views of it side by side` });
      words.textContent = has ? `Crops of step ${count(step)}: each row one picture; its first two columns are the global views that teacher and student see, the other ${views - 2} the local views of the student.` : "";
    },
  };
}
