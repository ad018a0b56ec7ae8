// The stage: the picture with the map over it, a ring at the strongest patch, a square at the query.

import { inferno } from "./colormap.js";
import { contour, strongest } from "./maps.js";

// Weights [patches] -> canvas of one pixel a patch. `alpha(t)` gives 0..255 from the scaled value t in 0..1.
export function colourPatches(weights, rows, columns, max, alpha, on = null) {
  const image = new ImageData(columns, rows);
  for (let i = 0; i < weights.length; i++) {
    if (on && !on[i]) continue;
    const t = max > 0 ? Math.min(1, weights[i] / max) : 0;
    const level = Math.round(255 * t);
    image.data[4 * i] = inferno[3 * level];
    image.data[4 * i + 1] = inferno[3 * level + 1];
    image.data[4 * i + 2] = inferno[3 * level + 2];
    image.data[4 * i + 3] = alpha(t);
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
  context.drawImage(colourPatches(weights, rows, columns, max, () => 255), (side - w) / 2, (side - h) / 2, w, h);
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
  context.drawImage(colourPatches(weights, rows, columns, max, alpha, on), ...area);
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
  const [bx, by, bw, bh] = boxOf(strongest(weights));
  for (const [colour, line] of [["#14181f", 4 * unit], ["#ffffff", 1.75 * unit]]) {
    context.beginPath();
    context.arc(bx + bw / 2, by + bh / 2, Math.max(9 * unit, 0.5 * Math.min(bw, bh)), 0, 2 * Math.PI);
    context.strokeStyle = colour;
    context.lineWidth = line;
    context.stroke();
  }
  const square = (patch, colour, dash) => {
    const box = boxOf(patch);
    context.setLineDash(dash);
    context.strokeStyle = "rgb(12 15 19 / .85)";
    context.lineWidth = 4 * unit;
    if (!dash.length) context.strokeRect(...box);
    context.strokeStyle = colour;
    context.lineWidth = 2 * unit;
    context.strokeRect(...box);
    context.setLineDash([]);
  };
  if (query !== null) square(query, "#ffffff", []);
  if (hover !== null) square(hover, "#6db3ff", [4 * unit, 3 * unit]);
}
