// Lengths of patch tokens: how large most are, and which stand far out. Plain functions of arrays, no drawing.

import { quantile } from "./maps.js";

export const FAR = 4; // times the median; a rule of ours. "Vision Transformers Need Registers" (arXiv 2309.16588) cuts at one length, which fits one model

// {median, patches: those over FAR times the median, longest first}
export function outliers(norms) {
  const median = quantile([norms], 0.5);
  const patches = Array.from(norms.keys()).filter((patch) => norms[patch] > FAR * median).sort((a, b) => norms[b] - norms[a] || a - b);
  return { median, patches };
}
