// "How does a patch become pixels?", told with the numbers of the picture on screen.

import { h, weight } from "./dom.js";

const px = (v) => (Math.abs(v - Math.round(v)) < 0.05 ? String(Math.round(v)) : v.toFixed(1));

export function patchPixels() {
  const list = h("ol");
  const fold = h("details", { class: "fold" }, h("summary", {}, "How does a patch become pixels?"), h("div", { class: "explains" }, list));
  let tell = () => {};
  fold.addEventListener("toggle", () => tell());
  // `scene` as attention.js makes it
  function show({ maps, layer, head, headWords, queryWords, weights, top, clip, peak, isCut }) {
    const { frame } = maps.facts;
    const tokens = maps.patches + maps.facts.n_prefix;
    const own = weights.reduce((a, b) => a + b, 0);
    const [x0, y0, x1, y1] = maps.frame.box(peak);
    const [left, right, above, below] = [x0 * frame.width, x1 * frame.width, y0 * frame.height, y1 * frame.height];
    const prefix = maps.facts.n_prefix ? `, after ${maps.facts.n_prefix} that ${maps.facts.n_prefix === 1 ? "has" : "have"} no place` : "";
    const what = head === "rollout" ? `A rollout multiplies the blocks' mean attention, each half and half with what passes by it, from block ${maps.rolled.start + 1} on`
      : head === "max" ? `The largest weight of the ${maps.heads} attention heads is taken for each token` : `The row of ${queryWords} in block ${layer + 1}, ${headWords}, says how much is read from each token`;
    list.replaceChildren(...[
      `The picture has ${frame.width}×${frame.height} pixels. The whole of it, nothing cropped, is resized to ${maps.columns * frame.patch_px}×${maps.rows * frame.patch_px}, so that both sides are whole patches.`,
      `The model cuts that into ${maps.rows} rows and ${maps.columns} columns of ${frame.patch_px}×${frame.patch_px} pixels. Each of the ${maps.patches} patches is one token${prefix}.`,
      `So one patch covers ${px(right - left)}×${px(below - above)} pixels of your picture, and no map can be finer than that. A larger input size makes it smaller.`,
      `${what}: ${tokens} weights${head === "max" ? "" : " that sum to 1"}, of which ${own.toFixed(3)} lies on the patches.`,
      `A weight of 0 is black, ${weight(top)} and more is the brightest${clip ? " (99.5 % of weights are below)" : ""}; the brighter, the more it covers the picture. ` +
        (isCut ? "With only the top mass kept, each patch is drawn as the square it is." : "Between the middles of patches the colour runs smoothly, which adds no detail."),
      `The strongest, row ${Math.floor(peak / maps.columns)}, column ${peak % maps.columns}, with weight ${weight(weights[peak])}, is pixels ${px(left)} to ${px(right)} from the left and ${px(above)} to ${px(below)} from the top.`,
    ].map((words) => h("li", {}, words)));
  }
  return {
    node: fold,
    // scene() is asked only while the fold is open
    hear(scene) {
      tell = () => { if (fold.open) show(scene()); };
      tell();
    },
  };
}
