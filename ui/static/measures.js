// Numbers of the maps on screen, each counted once: a slider asks for them at every step.

import { ascending, entropyBits, massMask, quantile, strongest } from "./maps.js";

const CLIP = 0.995;

// `maps` as wire.js gives them
export function measured(maps) {
  const known = new Map();
  const once = (what, layer, head, count) => {
    const name = [what, layer, head, head === "rollout" ? maps.rolled.start : ""].join();
    if (!known.has(name)) known.set(name, count());
    return known.get(name);
  };
  const heads = (layer) => Array.from({ length: maps.heads }, (_, i) => maps.map(layer, i));
  const peak = (layer, head) => once("peak", layer, head, () => strongest(maps.map(layer, head)));
  const high = (layer, head) => once("high", layer, head, () => quantile([maps.map(layer, head)], CLIP));
  const highOfAll = (layer) => once("high of all", layer, "", () => quantile(heads(layer), CLIP));
  const peakOfAll = (layer) => Math.max(...heads(layer).map((weights, i) => weights[peak(layer, i)]));
  return {
    peak,
    bits: (layer, head) => once("bits", layer, head, () => entropyBits(maps.map(layer, head))),
    order: (layer, head) => once("order", layer, head, () => ascending(maps.map(layer, head))),
    mask(layer, head, mass) { return mass >= 1 ? null : massMask(maps.map(layer, head), mass, this.order(layer, head)); },
    // the weight drawn brightest: shared by a block's heads or each its own, the largest or where 99.5 % lie below.
    // A rollout is no row of attention and always has its own.
    top(layer, head, { shared, clip }) {
      if (shared && head !== "rollout") return clip ? highOfAll(layer) : peakOfAll(layer);
      return clip ? high(layer, head) : maps.map(layer, head)[peak(layer, head)];
    },
  };
}
