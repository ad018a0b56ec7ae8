// Two pictures beside each other: match lines across both, a heat map over one, the query on the other.

import { cividis, colourAt, viridis } from "./colormap.js";
import { h } from "./dom.js";
import { apart, cosines, inFront, nearestLine, offBy, ranked } from "./matching.js";
import { colourPatches, drawRing, drawSquare } from "./stage.js";

const SIDES = ["a", "b"];
const other = (side) => (side === "a" ? "b" : "a");
const REACH_PX = 10;

// What one query patch finds in the other picture: {values, on (mask or null), order (best first), side}
export function heatOf(result, { side, patch }, leave) {
  const { arrays, frames, width, same } = result;
  const there = other(side);
  const values = cosines(arrays[side], patch, arrays[there], width);
  const on = same ? apart(patch, frames[there].rows, frames[there].columns, leave) : null;
  return { values, on, order: ranked(values, on), side: there };
}

// The matches of a result by `look`'s rule: the places of `all` in the foreground, those `kept` by their score, those `shown`
export function matchesOf(result, { rule, front, low, lines }) {
  const [patches, scores] = [result.arrays[rule], result.arrays[`${rule}_scores`]];
  const all = inFront(patches, front === "none" ? null : SIDES.map((side) => frontOf(result, side, front)));
  const kept = low === null ? all : all.filter((match) => scores[match] >= low - 1e-6);
  return { patches, scores, all, kept, shown: kept.slice(0, lines) };
}
function frontOf({ arrays, frames }, side, front) {
  const patches = frames[side].rows * frames[side].columns;
  return arrays[`front_${side}`].subarray(...(front === "pca" ? [patches, 2 * patches] : [0, patches]));
}

// The patch {side, patch} at the same place in another result, whose grid may differ; null where none is
export function inOther(asked, from, to, side = asked?.side) {
  if (!asked || from === to) return asked;
  const [x0, y0, x1, y1] = from.frames[asked.side].box(asked.patch);
  const patch = to.frames[side].at((x0 + x1) / 2, (y0 + y1) / 2);
  return patch === null ? null : { side, patch };
}

// A pin goes where its picture goes, at the same place whatever the grid; with another picture it is gone
export function keptPin(pin, before, after) {
  if (!pin) return null;
  if (!before) return pin.patch < after.frames[pin.side].rows * after.frames[pin.side].columns ? pin : null;
  const handle = (result, side) => result.facts.pictures[SIDES.indexOf(side)].handle;
  const was = handle(before, pin.side);
  const side = [pin.side, ...SIDES].find((one) => handle(after, one) === was);
  return side ? inOther(pin, before, after, side) : null;
}

// `hear`: {hover(side, patch|null), pick(side, patch), line(index|null), key(side, event)}
export function pairView(hear) {
  const stages = Object.fromEntries(SIDES.map((side) => [side, stage(side)]));
  const lines = h("canvas", { class: "lines", "aria-hidden": "true" });
  const node = h("div", { class: "pair" }, SIDES.map((side) => stages[side].node), lines);
  let result = null;
  let look = null;
  let ends = []; // of the lines on screen, px of the node

  function stage(side) {
    const photo = h("img", { alt: "" });
    const overlay = h("canvas", { class: "overlay", tabindex: "0", role: "img", "aria-label": `Picture ${side.toUpperCase()}` });
    const inner = h("div", { class: "inner" }, photo, overlay);
    const tag = h("div", { class: "tag" });
    const patchUnder = (event) => {
      const box = inner.getBoundingClientRect();
      return result?.frames[side].at((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height) ?? null;
    };
    overlay.addEventListener("pointermove", (event) => { if (event.pointerType !== "touch") hear.hover(side, patchUnder(event)); });
    overlay.addEventListener("pointerleave", () => hear.hover(side, null));
    overlay.addEventListener("click", (event) => {
      const patch = patchUnder(event);
      const [box, isTouch] = [node.getBoundingClientRect(), event.pointerType === "touch"];
      const line = isTouch && look?.mode === "matches" ? nearestLine(event.clientX - box.left, event.clientY - box.top, ends, REACH_PX) : null;
      if (line !== null && line !== look.line) hear.line(line); // a finger has no way to hover
      else if (patch !== null) hear.pick(side, patch);
    });
    overlay.addEventListener("keydown", (event) => hear.key(side, event));
    return { node: h("div", { class: `stage pic ${side}` }, inner, tag), inner, overlay, tag, photo };
  }

  node.addEventListener("pointermove", (event) => {
    if (look?.mode !== "matches" || event.pointerType === "touch") return;
    const box = node.getBoundingClientRect();
    hear.line(nearestLine(event.clientX - box.left, event.clientY - box.top, ends, REACH_PX));
  });
  node.addEventListener("pointerleave", () => hear.line(null));

  function show(next) { // {frames, photos, names, ...} of a new answer
    result = next;
    for (const side of SIDES) {
      const { node: box, inner, tag, photo } = stages[side];
      const { width, height } = next.facts[`frame_${side}`];
      const ratio = width / height;
      const shape = Math.min(3, Math.max(0.5, ratio)); // of very long pictures the stage keeps a shape one can look at
      box.style.aspectRatio = String(shape);
      box.style.setProperty("--shape", shape);
      inner.style.width = `${100 * Math.min(1, ratio / shape)}%`;
      inner.style.height = `${100 * Math.min(1, shape / ratio)}%`;
      photo.replaceWith(next.photos[side]);
      stages[side].photo = next.photos[side];
      tag.textContent = `${side.toUpperCase()} · ${next.names[side]}`;
    }
  }

  // the middle of a patch, px of the node
  function middle(side, patch) {
    const [x0, y0, x1, y1] = result.frames[side].box(patch);
    const [box, all] = [stages[side].inner.getBoundingClientRect(), node.getBoundingClientRect()];
    return [box.left - all.left + ((x0 + x1) / 2) * box.width, box.top - all.top + ((y0 + y1) / 2) * box.height];
  }

  // next: {mode, shown (places of matches), patches, scores, low, line, query, heat, crop {side, box}, truth}
  function draw(next) {
    look = next;
    if (!result || !node.clientWidth) return;
    for (const side of SIDES) drawSide(side);
    const context = cleared(lines, node.clientWidth, node.clientHeight);
    drawLines(context);
    context.restore();
  }

  function drawLines(context) {
    ends = [];
    if (look.mode !== "matches") return;
    ends = look.shown.map((match) => [...middle("a", look.patches[2 * match]), ...middle("b", look.patches[2 * match + 1])]);
    const scale = (score) => (score - look.low) / Math.max(1e-6, 1 - look.low);
    const order = [...ends.keys()].reverse(); // the strongest on top
    for (const i of order) {
      const [x0, y0, x1, y1] = ends[i];
      const wrong = look.truth && (offBy(look.patches, look.shown[i], look.truth, result.frames.b.columns) ?? Infinity) > 1;
      context.globalAlpha = look.line === null || look.line === i ? 1 : 0.35;
      context.setLineDash(wrong ? [5, 4] : []);
      drawLine(context, ends[i], [["rgb(12 15 19 / .55)", 3], [colourAt(viridis, scale(look.scores[look.shown[i]])), 1.5]]);
      context.setLineDash([]);
      for (const [x, y] of [[x0, y0], [x1, y1]]) {
        context.beginPath();
        context.arc(x, y, 3.5, 0, 2 * Math.PI);
        context.fillStyle = colourAt(viridis, scale(look.scores[look.shown[i]]));
        context.strokeStyle = "rgb(12 15 19 / .85)";
        context.lineWidth = 1;
        context.fill();
        context.stroke();
      }
    }
    context.globalAlpha = 1;
    if (look.line !== null && ends[look.line]) drawChosen(context, ends[look.line], look.scores[look.shown[look.line]]);
  }

  function drawChosen(context, [x0, y0, x1, y1], score) {
    drawLine(context, [x0, y0, x1, y1], [["#14181f", 5], ["#ffffff", 2]]);
    for (const [x, y] of [[x0, y0], [x1, y1]]) drawSquare(context, [x - 6, y - 6, 12, 12], 1, "#ffffff");
    label(context, x1, y1, score.toFixed(3), node.clientWidth, node.clientHeight);
  }

  function label(context, x, y, words, width, height) {
    context.font = "600 12px sans-serif";
    const room = context.measureText(words).width + 12;
    const left = x + 14 + room > width ? x - 14 - room : x + 14;
    const top = Math.min(Math.max(2, y - 10), height - 22);
    context.fillStyle = "rgb(20 24 31 / .88)";
    context.beginPath();
    context.roundRect(left, top, room, 20, 4);
    context.fill();
    context.fillStyle = "#ffffff";
    context.textBaseline = "middle";
    context.fillText(words, left + 6, top + 10.5);
  }

  function drawSide(side) {
    const { overlay, inner } = stages[side];
    const frame = result.frames[side];
    const [width, height] = [inner.clientWidth, inner.clientHeight];
    const context = cleared(overlay, width, height);
    const place = ([x0, y0, x1, y1]) => [x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height];
    const { heat, query, crop } = look;
    if (heat && heat.side === side) {
      const colours = colourPatches(heat.values, frame.rows, frame.columns, { low: heat.low, high: heat.high, alpha: (t) => 255 * (0.15 + 0.65 * t * t), on: heat.on, levels: cividis });
      context.imageSmoothingEnabled = !heat.on;
      context.imageSmoothingQuality = "high";
      context.drawImage(colours, ...place(frame.cover));
      const best = heat.order[0];
      if (look.truth && side === "b" && look.truth[query.patch] >= 0) drawSquare(context, place(frame.box(look.truth[query.patch])), 1, "#ffffff", [4, 3]);
      if (best !== undefined) {
        const [x, y, w, tall] = place(frame.box(best));
        drawRing(context, x + w / 2, y + tall / 2, Math.max(8, 0.6 * Math.max(w, tall)), 1);
        label(context, x + w / 2, y + tall / 2, heat.values[best].toFixed(3), width, height);
      }
    }
    if (crop && crop.side === side) drawSquare(context, place(crop.box), 1, "#ffffff", [6, 4]);
    if (query && query.side === side) drawSquare(context, place(frame.box(query.patch)), 1, "#ffffff");
    context.restore();
  }

  // The pair as it is on screen, on the page's ground
  function picture() {
    const box = node.getBoundingClientRect();
    const scale = Math.max(2, devicePixelRatio);
    const canvas = h("canvas", { width: Math.round(box.width * scale), height: Math.round(box.height * scale) });
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    context.fillStyle = getComputedStyle(document.body).backgroundColor;
    context.fillRect(0, 0, box.width, box.height);
    const put = (image, at) => context.drawImage(image, at.left - box.left, at.top - box.top, at.width, at.height);
    for (const side of SIDES) {
      const { inner, overlay, photo } = stages[side];
      put(photo, inner.getBoundingClientRect());
      put(overlay, inner.getBoundingClientRect());
    }
    put(lines, box);
    return canvas;
  }

  return { node, stages, show, draw, picture, get result() { return result; } };
}

// Strokes [[colour, px], ...] one over the other
function drawLine(context, [x0, y0, x1, y1], strokes) {
  for (const [colour, px] of strokes) {
    context.strokeStyle = colour;
    context.lineWidth = px;
    context.beginPath();
    context.moveTo(x0, y0);
    context.lineTo(x1, y1);
    context.stroke();
  }
}

// The canvas at this size, px of the page, with nothing on it: a context to draw in those, to be restored afterwards
function cleared(canvas, width, height) {
  const ratio = Math.min(2, devicePixelRatio);
  const [w, tall] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== tall) Object.assign(canvas, { width: w, height: tall });
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, w, tall);
  context.save();
  context.scale(ratio, ratio);
  return context;
}
