// Lengths of the patch tokens of the block on screen: far longer ones are artefacts. Nothing is asked.

import { sideStage, whenSeen } from "./besidestage.js";
import { drawRamp } from "./colormap.js";
import { h, toggle } from "./dom.js";
import { looking } from "./looking.js";
import { quantile } from "./maps.js";
import { FAR, outliers } from "./norms.js";
import { colourPatches, drawRing } from "./stage.js";

const CLIP = 0.995;
const RINGED = 200; // more rings would hide the map

export function normPanel({ panel, opacity }) {
  const stage = sideStage("Patch norms", { onhover: (patch) => { hover = patch; say(); } });
  const [ramp, low, high] = [h("canvas", { "aria-hidden": "true" }), h("span"), h("span")];
  const scale = h("div", { class: "scale meta" }, low, ramp, high);
  const clipped = toggle("Clip long ones at 99.5 %", true, (on) => { isClipped = on; seen.isNew(); });
  const { node, tell, command, shape } = panel({
    title: "Patch norms", meta: "length of the tokens that leave the block", stages: [stage], controls: [scale, h("div", { class: "line" }, clipped)], png: () => stage.picture(paint),
  });
  drawRamp(ramp);
  let isClipped = true;
  let hover = null;
  let of = null; // what of `looking.shown` is drawn
  let norms = null;
  let range = [0, 1];
  let far = { median: 0, patches: [] };
  const seen = whenSeen(node, draw);

  function paint(context, { area, box, unit }) {
    const { rows, columns } = of.maps;
    const image = colourPatches(norms, rows, columns, { low: range[0], high: range[1], alpha: () => 255 * opacity.value });
    context.imageSmoothingEnabled = false; // one outlier is one patch
    context.drawImage(image, ...area);
    for (const patch of far.patches.slice(0, RINGED)) {
      const [x, y, w, tall] = box(patch);
      drawRing(context, x + w / 2, y + tall / 2, Math.max(6 * unit, 0.7 * Math.max(w, tall)), unit);
    }
  }
  function draw() {
    if (!looking.shown) return;
    of = looking.shown;
    const { maps, layer, photo, handle, frame } = of;
    norms = maps.norms(layer);
    far = outliers(norms);
    range = [quantile([norms], 0), quantile([norms], isClipped ? CLIP : 1)];
    stage.show(handle, photo, frame, maps.facts.frame);
    stage.draw(paint);
    low.textContent = size(range[0]);
    high.textContent = `${size(range[1])}${isClipped ? " (99.5 %)" : ""}`;
    say();
    command({ verb: "attention", show: "norms", out: "norms.png" });
  }
  const size = (norm) => norm.toPrecision(3);
  function say() {
    if (!of) return;
    const { maps, layer } = of;
    const n = far.patches.length;
    const words = `${n === 0 ? "No patch is" : n === 1 ? "1 patch is" : `${n} patches are`} over ${FAR} times the median of ${size(far.median)}`;
    tell(hover === null ? words : `row ${Math.floor(hover / maps.columns)}, column ${hover % maps.columns}: ${size(norms[hover])}, ${(norms[hover] / far.median).toFixed(1)} times the median`);
    if (hover === null) stage.overlay.setAttribute("aria-label", `Patch norms of block ${layer + 1}, ${size(range[0])} to ${size(range[1])}. ${words}. Arrow keys move the query patch.`);
  }
  return { node, shape, isNew: seen.isNew };
}
