// The map as numbers: points in, pixels and indices out; no DOM. Points are {x, y}, each 0..65535 and [n]; a view
// {scale, left, top} says where they fall: pixel = coordinate * scale - left or top.

export const SIDE = 65536;
const CELLS = 512; // a side of the grid that finds the nearest point
export const CELL = SIDE / CELLS;

// 0..n-1 in an order without pattern, always the same one
export function shuffled(n, seed = 1) {
  const order = new Uint32Array(n);
  for (let i = 0, state = seed; i < n; i++) { // each number changes places with one before it
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const j = Math.floor((state / 2 ** 32) * (i + 1));
    order[i] = order[j];
    order[j] = i;
  }
  return order;
}

export function gather(values, order) {
  const found = new values.constructor(order.length);
  for (let i = 0; i < order.length; i++) found[i] = values[order[i]];
  return found;
}

// The rectangle that holds all points: [x0, y0, x1, y1]
export function bounds({ x, y }) {
  if (!x.length) return [0, 0, SIDE, SIDE];
  let [x0, y0, x1, y1] = [SIDE, SIDE, 0, 0];
  for (let i = 0; i < x.length; i++) {
    if (x[i] < x0) x0 = x[i];
    if (x[i] > x1) x1 = x[i];
    if (y[i] < y0) y0 = y[i];
    if (y[i] > y1) y1 = y[i];
  }
  return [x0, y0, Math.max(x1, x0 + 1), Math.max(y1, y0 + 1)];
}

// ---- pixels: one 32-bit number each, red in the lowest byte

export const pack = (red, green, blue, alpha = 255) => ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;

// Two colours [r, g, b], t of the second
export const mix = (a, b, t) => a.map((value, c) => Math.round(value + (b[c] - value) * t));

// [256 * 3] from one colour to another
export function ramp(from, to) {
  return Uint8ClampedArray.from({ length: 768 }, (_, i) => from[i % 3] + ((to[i % 3] - from[i % 3]) * Math.floor(i / 3)) / 255);
}

// The part from..to (each 0..1) of a scale [256 * 3], stretched to all 256 levels
export function part(levels, from, to) {
  return Uint8ClampedArray.from({ length: 768 }, (_, i) => levels[3 * Math.round(255 * from + Math.floor(i / 3) * (to - from)) + (i % 3)]);
}

// The side of the dots of n points that share an area, px: it follows their mean distance, so it grows with the zoom
export const dotSize = (n, area, scale, most) => Math.round(Math.min(most, Math.max(1, 0.4 * Math.sqrt(area / n) * scale)));

// The pixels of a dot as offsets into a buffer `width` wide: a square when small, else a disc with a rim of `rim` px
export function dot(size, width, rim = 0) {
  const offsets = { inner: [], rim: [] };
  const [middle, edge] = [(size - 1) / 2, Math.floor((size - 1) / 2)];
  for (let row = -rim; row < size + rim; row++) {
    for (let column = -rim; column < size + rim; column++) {
      const away = Math.hypot(row - middle, column - middle);
      const offset = (row - edge) * width + column - edge;
      if (size < 3 || away <= size / 2) offsets.inner.push(offset);
      else if (away <= size / 2 + rim) offsets.rim.push(offset);
    }
  }
  return { inner: Int32Array.from(offsets.inner), rim: Int32Array.from(offsets.rim) };
}

// The pixel of each of the first `count` points, -1 for those outside or within `edge` px of the border
export function placed({ x, y }, count, { scale, left, top }, width, height, edge = 0, pixel = new Int32Array(count)) {
  const [right, bottom] = [width - edge, height - edge];
  for (let i = 0; i < count; i++) {
    const px = x[i] * scale - left;
    const py = y[i] * scale - top;
    pixel[i] = px >= edge && py >= edge && px < right && py < bottom ? (py | 0) * width + (px | 0) : -1;
  }
  return pixel;
}

// Indices of the points on screen
export function inView(points, view, width, height) {
  const pixel = placed(points, points.x.length, view, width, height);
  let n = 0;
  for (let i = 0; i < pixel.length; i++) if (pixel[i] >= 0) pixel[n++] = i;
  return Uint32Array.from(pixel.subarray(0, n));
}

// Dots in the order of the points, those alone that are `on` (null: all); colours and rims [256], by the point's level
export function paint(pixels, pixel, count, level, on, { inner, rim }, colours, rims) {
  for (let i = 0; i < count; i++) {
    if (pixel[i] < 0 || (on && !on[i])) continue;
    const [at, rimColour, colour] = [pixel[i], rims[level[i]], colours[level[i]]];
    for (let k = 0; k < rim.length; k++) pixels[at + rim[k]] = rimColour;
    for (let k = 0; k < inner.length; k++) pixels[at + inner[k]] = colour;
  }
}

// The dots that are not `on`, only where nothing is drawn
export function paintBelow(pixels, pixel, count, on, { inner }, colour) {
  for (let i = 0; i < count; i++) {
    if (pixel[i] < 0 || on[i]) continue;
    for (let k = 0; k < inner.length; k++) if (!pixels[pixel[i] + inner[k]]) pixels[pixel[i] + inner[k]] = colour;
  }
}

// How many dots meet on each pixel, in the upper 24 bits, and the level of the last one in the lower 8
export function tally(pixels, pixel, count, level, on, { inner }) {
  for (let i = 0; i < count; i++) {
    if (pixel[i] < 0 || (on && !on[i])) continue;
    for (let k = 0; k < inner.length; k++) {
      const at = pixel[i] + inner[k];
      pixels[at] = ((pixels[at] & 0xffffff00) + 256) | level[i];
    }
  }
}

// What `tally` counted as colours. Opacity follows the logarithm of the count: `least` for 1, full from `peak` on.
// The colour is the last point's: their order has no pattern, so it is a fair sample of all that meet there.
export function shade(pixels, colours, least, peak) {
  const alphas = new Uint32Array(Math.ceil(Math.max(2, Math.min(peak, 65535))) + 1);
  for (let n = 1; n < alphas.length; n++) {
    const share = Math.min(1, Math.log(n) / Math.log(alphas.length - 1));
    alphas[n] = Math.round(255 * (least + (1 - least) * share)) << 24;
  }
  const most = alphas.length - 1;
  for (let at = 0; at < pixels.length; at++) {
    const packed = pixels[at];
    if (packed) pixels[at] = (colours[packed & 255] & 0xffffff) | alphas[Math.min(packed >>> 8, most)];
  }
}

// ---- the nearest point

// Points by cell as linked lists, lowest index first; `crowd`: how many points share the cell of a point, on average
export function grid({ x, y }) {
  const head = new Int32Array(CELLS * CELLS).fill(-1);
  const counts = new Uint32Array(CELLS * CELLS);
  const next = new Int32Array(x.length);
  let squares = 0;
  for (let i = x.length - 1; i >= 0; i--) {
    const cell = Math.floor(y[i] / CELL) * CELLS + Math.floor(x[i] / CELL);
    next[i] = head[cell];
    head[cell] = i;
    squares += 2 * counts[cell]++ + 1;
  }
  return { head, next, crowd: squares / Math.max(1, x.length) };
}

// The index of the point nearest to a place, of equals the lowest; null when none is within `reach`. All in coordinates.
export function nearest({ x, y }, { head, next }, placeX, placeY, reach) {
  const [column, row] = [Math.floor(placeX / CELL), Math.floor(placeY / CELL)];
  let [best, least] = [null, reach * reach];
  // ring by ring of cells; those of a ring are at least ring - 1 cells away
  for (let ring = 0; ring < 2 || ((ring - 1) * CELL) ** 2 <= least; ring++) {
    for (let r = Math.max(0, row - ring); r <= Math.min(CELLS - 1, row + ring); r++) {
      const step = Math.abs(r - row) === ring ? 1 : 2 * ring;
      for (let c = column - ring; c <= column + ring; c += step) {
        if (c < 0 || c >= CELLS) continue;
        for (let i = head[r * CELLS + c]; i >= 0; i = next[i]) {
          const away = (x[i] - placeX) ** 2 + (y[i] - placeY) ** 2;
          if (away < least || (away === least && (best === null || i < best))) [best, least] = [i, away];
        }
      }
    }
  }
  return best;
}

// ---- lasso

// Whether a line [[x, y], ...], closed, goes round a place (winding number not 0)
export function goesRound(polygon, x, y) {
  let turns = 0;
  let [x0, y0] = polygon.at(-1);
  for (const [x1, y1] of polygon) {
    if (y0 <= y !== y1 <= y) { // crosses the height of the place
      const side = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0);
      if (y1 > y0 && side > 0) turns++;
      else if (y1 < y0 && side < 0) turns--;
    }
    [x0, y0] = [x1, y1];
  }
  return turns !== 0;
}

// Indices of the points on screen that a polygon, px, goes round. `mask` is RGBA [height * width * 4], the polygon
// filled with green under its outline in red: only points on the outline need the exact test.
export function enclosed({ x, y }, view, mask, width, height, polygon) {
  const pixel = placed({ x, y }, x.length, view, width, height);
  const found = new Uint32Array(x.length);
  let n = 0;
  for (let i = 0; i < pixel.length; i++) {
    const at = 4 * pixel[i];
    if (at < 0 || !mask[at + 3]) continue;
    if (!mask[at] || goesRound(polygon, x[i] * view.scale - view.left, y[i] * view.scale - view.top)) found[n++] = i;
  }
  return found.slice(0, n);
}
