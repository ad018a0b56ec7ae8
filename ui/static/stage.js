// The stage: the picture with the map over it, a ring at the strongest patch, a square at the query.

import { inferno } from "./colormap.js";
import { contour, strongest } from "./maps.js";

// Values [patches] -> canvas of one pixel a patch, coloured from `low` to `high`. `alpha(t)` gives 0..255 from the
// scaled value t in 0..1; where `on` is 0 nothing is drawn.
export function colourPatches(values, rows, columns, { low = 0, high, alpha, on = null, levels = inferno }) {
  const image = new ImageData(columns, rows);
  const { data } = image;
  for (let i = 0; i < values.length; i++) {
    if (on && !on[i]) continue;
    const t = high > low ? Math.min(1, Math.max(0, (values[i] - low) / (high - low))) : 0;
    const [level, at] = [3 * Math.round(255 * t), 4 * i];
    data[at] = levels[level];
    data[at + 1] = levels[level + 1];
    data[at + 2] = levels[level + 2];
    data[at + 3] = alpha(t);
  }
  const canvas = new OffscreenCanvas(columns, rows);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

export function drawTile(canvas, weights, rows, columns, max) {
  const side = Math.round(Math.max(48, canvas.clientWidth || 96) * Math.min(2, devicePixelRatio));
  if (canvas.width !== side || canvas.height !== side) canvas.width = canvas.height = side;
  const scale = side / Math.max(rows, columns);
  const [w, h] = [Math.max(1, columns * scale), Math.max(1, rows * scale)];
  const context = canvas.getContext("2d");
  context.fillStyle = "#000004";
  context.fillRect(0, 0, side, side);
  context.imageSmoothingQuality = "high";
  context.drawImage(colourPatches(weights, rows, columns, { high: max, alpha: () => 255 }), (side - w) / 2, (side - h) / 2, w, h);
}

// look: {weights, rows, columns, frame (framed), max, opacity 0..1, on (mask or null), query (patch or null), hover}
export function drawOverlay(context, width, height, look) {
  const { weights, rows, columns, frame, max, opacity, on, query, hover } = look;
  context.clearRect(0, 0, width, height);
  const [x0, y0, x1, y1] = frame.cover;
  const area = [x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height];
  if (on) { // what is cut away steps back, what stays is drawn patch by patch
    context.fillStyle = `rgb(12 15 19 / ${0.4 * opacity})`;
    context.fillRect(...area);
  }
  const alpha = on ? () => 255 * opacity : (t) => 255 * opacity * (0.22 + 0.78 * t);
  context.imageSmoothingEnabled = !on;
  context.imageSmoothingQuality = "high";
  context.drawImage(colourPatches(weights, rows, columns, { high: max, alpha, on }), ...area);
  const unit = Math.max(1, Math.min(width, height) / 640);
  if (on) {
    const [px, py] = [area[2] / columns, area[3] / rows];
    for (const [colour, line] of [["rgb(12 15 19 / .75)", 3 * unit], ["#ffffff", 1.25 * unit]]) {
      context.beginPath();
      for (const [ax, ay, bx, by] of contour(on, rows, columns)) {
        context.moveTo(area[0] + ax * px, area[1] + ay * py);
        context.lineTo(area[0] + bx * px, area[1] + by * py);
      }
      context.strokeStyle = colour;
      context.lineWidth = line;
      context.lineCap = "square";
      context.stroke();
    }
  }
  const boxOf = (patch) => {
    const [a, b, c, d] = frame.box(patch);
    return [a * width, b * height, (c - a) * width, (d - b) * height];
  };
  const best = strongest(weights);
  const [bx, by, bw, bh] = boxOf(best);
  const radius = Math.min(Math.max(9 * unit, 0.5 * Math.min(bw, bh) - 2 * unit), 0.5 * Math.min(width, height) - 2 * unit); // within a narrow strip
  if (weights[best] > 0) drawRing(context, bx + bw / 2, by + bh / 2, Math.max(2 * unit, radius), unit);
  if (query !== null) drawSquare(context, boxOf(query), unit, "#ffffff");
  if (hover !== null) drawSquare(context, boxOf(hover), unit, "#6db3ff", [4, 3]);
}

// A box [x, y, width, height]: solid with a dark edge, or dashed
export function drawSquare(context, box, unit, colour, dash = []) {
  context.setLineDash(dash.map((length) => length * unit));
  context.strokeStyle = "rgb(12 15 19 / .85)";
  context.lineWidth = 4 * unit;
  if (!dash.length) context.strokeRect(...box);
  context.strokeStyle = colour;
  context.lineWidth = 2 * unit;
  context.strokeRect(...box);
  context.setLineDash([]);
}

export function drawRing(context, x, y, radius, unit) {
  for (const [colour, line] of [["#14181f", 4 * unit], ["#ffffff", 1.75 * unit]]) {
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.strokeStyle = colour;
    context.lineWidth = line;
    context.stroke();
  }
}
