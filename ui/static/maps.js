// Numbers of one map: plain functions of arrays, weights [patches] in, no drawing.

export function entropyBits(weights) {
  const total = weights.reduce((a, b) => a + b, 0);
  if (total <= 0) return 0;
  let bits = 0;
  for (const w of weights) if (w > 0) bits -= (w / total) * Math.log2(w / total);
  return bits;
}

export function strongest(weights) {
  let best = 0;
  for (let i = 1; i < weights.length; i++) if (weights[i] > weights[best]) best = i;
  return best;
}

// Linear between the two nearest ranks, as numpy.quantile
export function quantile(arrays, q) {
  const sorted = new Float32Array(arrays.reduce((n, a) => n + a.length, 0));
  let at = 0;
  for (const a of arrays) { sorted.set(a, at); at += a.length; }
  sorted.sort();
  const rank = q * (sorted.length - 1);
  const low = Math.floor(rank);
  const high = Math.min(low + 1, sorted.length - 1);
  return sorted[low] + (sorted[high] - sorted[low]) * (rank - low);
}

// Patches from the weakest to the strongest; of equal ones the first comes first
export function ascending(weights) {
  return Uint32Array.from(weights.keys()).sort((a, b) => weights[a] - weights[b] || a - b);
}

// The smallest set of strongest patches that holds at least `mass` of the sum: sort ascending, cumulate,
// a patch is on where the running share passes 1 - mass (the crossing patch included). null when nothing is cut.
export function massMask(weights, mass, order = ascending(weights)) {
  if (mass >= 1) return null;
  const total = weights.reduce((a, b) => a + b, 0);
  const on = new Uint8Array(weights.length);
  let sum = 0;
  for (const patch of order) {
    sum += weights[patch];
    if (sum > (1 - mass) * total) on[patch] = 1;
  }
  return on;
}

// Edges between patches that are on and off: [[x0, y0, x1, y1], ...] in patch units
export function contour(on, rows, columns) {
  const lines = [];
  const is = (r, c) => r >= 0 && c >= 0 && r < rows && c < columns && on[r * columns + c] === 1;
  for (let r = 0; r <= rows; r++) {
    for (let c = 0; c <= columns; c++) {
      if (c < columns && is(r, c) !== is(r - 1, c)) lines.push([c, r, c + 1, r]);
      if (r < rows && is(r, c) !== is(r, c - 1)) lines.push([c, r, c, r + 1]);
    }
  }
  return lines;
}
