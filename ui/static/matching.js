// Matches as numbers: plain functions of arrays, no drawing. Features are unit rows [N, width], one after the other.

export function cosines(rows, patch, others, width) {
  const query = rows.subarray(patch * width, (patch + 1) * width);
  const found = new Float32Array(others.length / width);
  for (let i = 0, at = 0; i < found.length; i++) {
    let sum = 0;
    for (let c = 0; c < width; c++, at++) sum += query[c] * others[at];
    found[i] = sum;
  }
  return found;
}

// 1 for the patches more than `radius` rows or columns away from `patch`
export function apart(patch, rows, columns, radius) {
  const on = new Uint8Array(rows * columns);
  const [row, column] = [Math.floor(patch / columns), patch % columns];
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) on[r * columns + c] = Number(Math.max(Math.abs(r - row), Math.abs(c - column)) > radius);
  }
  return on;
}

// The places of values in falling order, only those where `on` is 1 (null: all)
export function ranked(values, on = null) {
  return Array.from(values.keys()).filter((i) => !on || on[i]).sort((a, b) => values[b] - values[a] || a - b);
}

// Matches patches [M, 2] with both ends in the foreground; fronts: two masks, or null
export function inFront(patches, fronts) {
  const all = Array.from({ length: patches.length / 2 }, (_, i) => i);
  return fronts ? all.filter((i) => fronts[0][patches[2 * i]] && fronts[1][patches[2 * i + 1]]) : all;
}

// How many rows or columns the patch of B is off the true one; null where none is known
export function offBy(patches, match, truth, columns) {
  const [found, right] = [patches[2 * match + 1], truth[patches[2 * match]]];
  if (right < 0) return null;
  return Math.max(Math.abs(Math.floor(found / columns) - Math.floor(right / columns)), Math.abs((found % columns) - (right % columns)));
}

// Counts of scores in `bins` equal parts of low..1, the upper end in the last
export function histogram(scores, low, bins) {
  const counts = new Array(bins).fill(0);
  for (const score of scores) counts[Math.min(bins - 1, Math.max(0, Math.floor(((score - low) / (1 - low)) * bins)))]++;
  return counts;
}

// The line [[x0, y0, x1, y1], ...] nearest to a point, null when none is within `reach`; ends are easier to hit
export function nearestLine(x, y, lines, reach) {
  let [best, least] = [null, reach];
  lines.forEach(([x0, y0, x1, y1], i) => {
    const [dx, dy] = [x1 - x0, y1 - y0];
    const t = Math.min(1, Math.max(0, ((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy || 1)));
    const away = Math.hypot(x - x0 - t * dx, y - y0 - t * dy) * (t === 0 || t === 1 ? 0.5 : 1);
    if (away < least) [best, least] = [i, away];
  });
  return best;
}
