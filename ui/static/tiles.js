// The small maps beside the stage: one a transformer block, and one an attention head of the block on screen.

import { h } from "./dom.js";
import { drawTile } from "./stage.js";

// `hear`: {block(layer), head(head), preview(head | null)}; heads are "mean", "max", an index or "rollout"
export function tilesView(hear) {
  const blockMeta = h("span", { class: "meta" });
  const headMeta = h("span", { class: "meta" });
  const blocks = h("div", { class: "blocks", role: "group", "aria-label": "Transformer block" });
  const heads = h("div", { class: "heads", role: "group", "aria-label": "Attention head", onpointerleave: () => hear.preview(null) });
  const node = [
    h("div", {}, h("div", { class: "head" }, h("h2", {}, "Block"), blockMeta), blocks),
    h("div", {}, h("div", { class: "head" }, h("h2", {}, "Head"), headMeta), heads)];
  let [blockTiles, headTiles] = [[], []];

  function tile(group, name, onclick) {
    const canvas = h("canvas", { "aria-hidden": "true" });
    const right = h("i");
    const button = h("button", { type: "button", class: "cellb", "aria-pressed": "false", onclick }, canvas, h("span", {}, h("b", {}, name), right));
    group.append(button);
    return { name, canvas, right, button };
  }

  const order = () => headTiles.map(({ head }) => head);
  return {
    node,
    order, // heads from the first tile to the last
    // tiles for a model, empty until maps are drawn; true where the number of blocks is another than before
    build(layers, headCount) {
      const isOther = blockTiles.length !== layers;
      if (!isOther && headTiles.length === headCount + 3) return false;
      blocks.replaceChildren();
      heads.replaceChildren();
      blockTiles = Array.from({ length: layers }, (_, i) => tile(blocks, String(i + 1), () => hear.block(i)));
      for (const [i, { button }] of blockTiles.entries()) button.setAttribute("aria-label", `Block ${i + 1}`);
      const named = [["mean", "Mean"], ["max", "Max"], ...Array.from({ length: headCount }, (_, i) => [i, `Head ${i + 1}`]), ["rollout", "Rollout"]];
      headTiles = named.map(([head, name]) => ({ head, ...tile(heads, name, () => hear.head(head)) }));
      for (const { head, button } of headTiles) {
        button.addEventListener("pointerenter", (event) => { if (event.pointerType !== "touch") hear.preview(head); });
      }
      blocks.style.setProperty("--columns", Math.min(12, Math.max(8, layers)));
      heads.style.setProperty("--columns", headTiles.length <= 8 ? 4 : headTiles.length <= 20 ? 5 : 7);
      return isOther;
    },
    enable(isOn) {
      for (const { button } of [...blockTiles, ...headTiles]) button.disabled = !isOn;
    },
    // `look` {layer, shared, clip}: a new result, or another scale
    draw(maps, measures, look) {
      const own = { ...look, shared: false };
      blockTiles.forEach(({ canvas }, i) => drawTile(canvas, maps.map(i, "mean"), maps.rows, maps.columns, measures.top(i, "mean", own)));
      this.drawHeads(maps, measures, look);
    },
    drawHeads(maps, measures, look) {
      for (const { name, head, canvas, right, button } of headTiles) {
        const weights = maps.map(look.layer, head);
        const bits = weights && measures.bits(look.layer, head).toFixed(1);
        right.textContent = weights ? `${bits} bit` : "press";
        button.setAttribute("aria-label", weights ? `${name}, ${bits} bit` : `${name}, computed when pressed`);
        button.title = weights ? "" : "Computed when pressed";
        button.classList.toggle("waits", !weights);
        if (weights) drawTile(canvas, weights, maps.rows, maps.columns, measures.top(look.layer, head, look));
      }
    },
    press({ layer, head }) {
      blockTiles.forEach(({ button }, i) => button.setAttribute("aria-pressed", String(i === layer)));
      for (const tile of headTiles) tile.button.setAttribute("aria-pressed", String(tile.head === head));
    },
    say(fromWords, evenBits) {
      blockMeta.textContent = `mean over heads, own scale each, from ${fromWords}`;
      headMeta.textContent = `entropy of the row; ${evenBits.toFixed(1)} bit is uniform`;
    },
  };
}
