// Whose patch: for each patch the attention head that looks at it most. Plain functions of arrays, no drawing.

// Of each attention head's weights [patches] the running sums, weakest patch first, and their total
export function ranked(heads) {
  return heads.map((weights) => {
    const order = Array.from(weights.keys()).sort((a, b) => weights[a] - weights[b] || a - b);
    const sums = new Float64Array(weights.length);
    let sum = 0;
    for (const patch of order) {
      sum += weights[patch];
      sums[patch] = sum;
    }
    return { weights, sums, total: sum };
  });
}

// [patches] the index of the head with the largest weight among those that keep the patch, -1 where none does. A head
// keeps the fewest strongest patches that together hold `mass` of its weight (maps.js, massMask). After iBOT,
// analysis/attention_map/visualize_attention.py
export function owners(heads, mass) {
  const found = new Int16Array(heads[0].weights.length).fill(-1);
  const most = new Float32Array(found.length);
  heads.forEach(({ weights, sums, total }, head) => {
    const low = mass >= 1 ? -1 : (1 - mass) * total;
    for (let patch = 0; patch < found.length; patch++) {
      if (sums[patch] > low && (found[patch] < 0 || weights[patch] > most[patch])) {
        found[patch] = head;
        most[patch] = weights[patch];
      }
    }
  });
  return found;
}

// Which of `places` colours each head has, null where it has none: the first heads, until a person picks others
export const firstColours = (heads, places) => Array.from({ length: heads }, (_, head) => (head < places ? head : null));

// The same after a press on one head: its colour is given up, or the first free one is taken
export function pickColour(colours, head, places) {
  const free = Array.from({ length: places }, (_, place) => place).find((place) => !colours.includes(place)) ?? null;
  return colours.map((place, i) => (i !== head ? place : place === null ? free : null));
}

// As `--heads` of the command line: heads in the order of their colours, - for a colour that none has
export function headWords(colours, places) {
  const words = Array.from({ length: places }, (_, place) => { const head = colours.indexOf(place); return head < 0 ? "-" : String(head); });
  while (words.length > 1 && words.at(-1) === "-") words.pop();
  return words.join(",");
}
