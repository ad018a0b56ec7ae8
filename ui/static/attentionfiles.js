// What is taken away from the attention view: a table, CSV, and the command line that gives the same.

import { h, shellWord, stemOf, weight } from "./dom.js";

const MOST_ROWS = 20;

// The command for a scene of attention.js and the picture's file name
export function commandOf({ maps, layer, head, query, mass }, file) {
  const start = head === "rollout" && maps.rolled.start > 0 ? ` --start ${maps.rolled.start}` : "";
  return `python -m analysis attention ${shellWord(file)} --model ${shellWord(maps.model.typed)} --layer ${layer} --query ${query} ` +
    `--size ${maps.facts.size} --show ${head}${start}${mass < 1 ? ` --mass ${mass}` : ""} --out attention.png`;
}

// The name of a file to save, without suffix
export function fileStem(file, { layer, headWords }) {
  return `${stemOf(file)}-block${layer + 1}-${headWords.split(" from ")[0].replace(" ", "")}`;
}

// Every head of the block on screen; patches by their middles in pixels of the picture as it is shown
export function csvOf({ maps, layer }) {
  const heads = ["mean", "max", ...Array.from({ length: maps.heads }, (_, i) => i)];
  const all = heads.map((head) => maps.map(layer, head));
  const lines = [["row", "column", "x_px", "y_px", ...heads.map((head) => (typeof head === "number" ? `head_${head}` : head))].join(",")];
  for (let patch = 0; patch < maps.patches; patch++) {
    const centre = maps.frame.centre(patch).map((px) => px.toFixed(2));
    lines.push([Math.floor(patch / maps.columns), patch % maps.columns, ...centre, ...all.map((w) => w[patch].toPrecision(7))].join(","));
  }
  return `${lines.join("\n")}\n`;
}

// "Show as table": the strongest patches. hear(scene) is told of every change and asks for the scene only while open.
export function strongestTable() {
  const box = h("div", { class: "tablebox" });
  const fold = h("details", { class: "fold" }, h("summary", {}, "Show as table"), box);
  let tell = () => {};
  fold.addEventListener("toggle", () => tell());
  function fill({ maps, weights, order, name }) {
    const total = weights.reduce((a, b) => a + b, 0);
    let sum = 0;
    const rows = Array.from({ length: Math.min(MOST_ROWS, maps.patches) }, (_, rank) => {
      const patch = order[order.length - 1 - rank];
      sum += weights[patch];
      const cells = [rank + 1, Math.floor(patch / maps.columns), patch % maps.columns, weight(weights[patch]), `${((100 * sum) / total).toFixed(1)} %`];
      return h("tr", {}, cells.map((cell) => h("td", {}, String(cell))));
    });
    box.replaceChildren(h("table", { class: "tbl" },
      h("caption", { class: "meta" }, `${name}: the ${rows.length} strongest of ${maps.patches} patches`),
      h("thead", {}, h("tr", {}, ["Rank", "Row", "Column", "Weight", "Mass so far"].map((one) => h("th", { scope: "col" }, one)))),
      h("tbody", {}, rows)));
  }
  return {
    node: fold,
    hear(scene) {
      tell = () => { if (fold.open) fill(scene()); };
      tell();
    },
  };
}
