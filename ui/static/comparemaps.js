// The maps of two models on one picture: beside each other, or one over the other under a divider.

import { drawRamp } from "./colormap.js";
import { h } from "./dom.js";
import { drawOverlay } from "./stage.js";

const SIDES = ["a", "b"];
const SHAPES = [0.4, 3]; // of very long pictures the stage keeps a shape one can look at

// How much two maps have in common, 0..1: each {weights, rows, columns} spread evenly over its patches and scaled to
// the sum 1, the smaller of both summed over the picture. Exact: no patch edge lies within one of the parts.
export function mapOverlap(a, b) {
  const total = (map) => map.weights.reduce((sum, w) => sum + w, 0);
  const [sumA, sumB] = [total(a), total(b)];
  if (!(sumA > 0 && sumB > 0)) return 0;
  const [xs, ys] = [parts(a.columns, b.columns), parts(a.rows, b.rows)];
  let shared = 0;
  for (const [ya, yb, tall] of ys) {
    for (const [xa, xb, wide] of xs) {
      const [inA, inB] = [(a.weights[ya * a.columns + xa] / sumA) * a.rows * a.columns, (b.weights[yb * b.columns + xb] / sumB) * b.rows * b.columns];
      shared += Math.min(inA, inB) * tall * wide;
    }
  }
  return shared;
}

// A line cut into n and into m equal pieces: [[piece of the n, piece of the m, length], ...]
function parts(n, m) {
  const cuts = [...new Set([...Array.from({ length: n + 1 }, (_, i) => i * m), ...Array.from({ length: m + 1 }, (_, i) => i * n)])].sort((p, q) => p - q);
  return cuts.slice(0, -1).map((start, i) => [Math.floor(start / m), Math.floor(start / n), (cuts[i + 1] - start) / (n * m)]);
}

// `hear`: {pick(side, x, y), hover(side, x, y | null), key(side, event), split(per cent)}; x and y in 0..1 of the picture
export function mapsView(hear) {
  const figures = Object.fromEntries(SIDES.map((side) => [side, figure(side)]));
  const grip = h("div", { class: "divider", "aria-hidden": "true", hidden: true }, h("i"));
  const tagB = h("div", { class: "tag right", hidden: true });
  figures.a.inner.append(grip);
  figures.a.stage.append(tagB);
  const node = h("div", { class: "maps2" }, SIDES.map((side) => figures[side].node));
  let look = null;

  function figure(side) {
    const photo = h("img", { alt: "" });
    const overlay = h("canvas", { class: "overlay", tabindex: "0", role: "img", "aria-label": `Model ${side.toUpperCase()}` });
    const inner = h("div", { class: "inner" }, photo, overlay);
    const tag = h("div", { class: "tag" });
    const state = h("div", { class: "state", hidden: true });
    const loading = h("div", { class: "load", role: "status", hidden: true });
    const stage = h("div", { class: `stage pic ${side}` }, inner, tag, state, loading);
    const ramp = h("canvas", { "aria-hidden": "true" });
    const high = h("span");
    const [read, best] = [h("span"), h("span")];
    drawRamp(ramp);
    const place = (event) => {
      const box = inner.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    };
    // under the divider, the model whose map lies at this place
    const under = (x) => (look?.mode === "slider" && 100 * x > look.split ? "b" : side);
    overlay.addEventListener("click", (event) => { const [x, y] = place(event); hear.pick(under(x), x, y); });
    overlay.addEventListener("pointermove", (event) => { if (event.pointerType !== "touch") { const [x, y] = place(event); hear.hover(under(x), x, y); } });
    overlay.addEventListener("pointerleave", () => hear.hover(side, null));
    overlay.addEventListener("keydown", (event) => hear.key(side, event));
    const node = h("figure", {}, h("div", { class: "bed" }, stage), h("div", { class: "scale meta" }, h("span", {}, "0"), ramp, high),
      h("div", { class: "under meta" }, read, best));
    return { node, stage, inner, overlay, tag, state, loading, high, read, best, photo };
  }

  const drag = (event) => {
    const box = figures.a.inner.getBoundingClientRect();
    hear.split(Math.round(100 * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width))));
  };
  grip.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    grip.setPointerCapture(event.pointerId);
  });
  grip.addEventListener("pointermove", (event) => { if (grip.hasPointerCapture(event.pointerId)) drag(event); });

  // another picture: its stage takes its shape, and an empty one beside it
  function shape(side, width, height) {
    const ratio = width / height;
    const box = Math.min(SHAPES[1], Math.max(SHAPES[0], ratio));
    const { node: figure, inner } = figures[side];
    figure.style.setProperty("--shape", box);
    inner.style.width = `${100 * Math.min(1, ratio / box)}%`;
    inner.style.height = `${100 * Math.min(1, box / ratio)}%`;
  }

  function show(side, photo) {
    figures[side].photo.replaceWith(photo);
    figures[side].photo = photo;
    for (const one of SIDES) if (one === side || !look?.maps[one]) shape(one, photo.naturalWidth, photo.naturalHeight);
  }

  // next: {mode: "beside" | "slider", split per cent, maps: {a, b}}; a map is what `drawOverlay` takes, or null
  function draw(next) {
    look = next;
    const isSlider = next.mode === "slider";
    node.classList.toggle("slider", isSlider);
    figures.b.node.hidden = isSlider;
    grip.hidden = tagB.hidden = !isSlider;
    grip.style.left = `${next.split}%`;
    for (const side of SIDES) {
      const { overlay, inner, high, stage } = figures[side];
      stage.classList.toggle("empty", !next.maps[side]);
      const size = sized(overlay, inner);
      if (!size) continue;
      const context = overlay.getContext("2d");
      context.clearRect(0, 0, ...size);
      if (isSlider) drawHalves(context, ...size, next);
      else if (next.maps[side]) drawOverlay(context, ...size, next.maps[side]);
      high.textContent = next.maps[side]?.words ?? "";
    }
    tagB.textContent = figures.b.tag.textContent;
  }
  function drawHalves(context, width, height, { maps, split }) {
    const at = Math.round((width * split) / 100);
    for (const [side, from, to] of [["a", 0, at], ["b", at, width]]) {
      if (!maps[side] || to <= from) continue;
      const half = new OffscreenCanvas(width, height);
      drawOverlay(half.getContext("2d"), width, height, maps[side]);
      context.drawImage(half, from, 0, to - from, height, from, 0, to - from, height);
    }
  }

  function sized(overlay, inner) {
    const ratio = Math.min(2, devicePixelRatio);
    const [width, height] = [Math.round(inner.clientWidth * ratio), Math.round(inner.clientHeight * ratio)];
    if (!width || !height) return null;
    if (overlay.width !== width || overlay.height !== height) Object.assign(overlay, { width, height });
    return [width, height];
  }

  // What is on screen as one picture, in pixels of the photograph
  function picture() {
    const shown = look.mode === "slider" ? ["a"] : SIDES.filter((side) => look.maps[side]);
    const { naturalWidth: width, naturalHeight: height } = figures[shown[0]].photo;
    const gap = Math.round(width / 32);
    const canvas = h("canvas", { width: shown.length * (width + gap) - gap, height });
    const context = canvas.getContext("2d");
    for (const [i, side] of shown.entries()) {
      const over = new OffscreenCanvas(width, height);
      if (look.mode === "slider") drawHalves(over.getContext("2d"), width, height, look);
      else drawOverlay(over.getContext("2d"), width, height, look.maps[side]);
      context.drawImage(figures[side].photo, i * (width + gap), 0, width, height);
      context.drawImage(over, i * (width + gap), 0);
    }
    return canvas;
  }

  return { node, figures, show, draw, picture };
}
