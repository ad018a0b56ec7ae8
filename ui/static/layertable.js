// How alike every transformer block of A is to every one of B: a table of colours, with numbers where they fit. Tab
// reaches one cell, the arrow keys move on; below the table stands what the cell under the pointer or the focus says.

import { cividis, colourAt, drawRamp } from "./colormap.js";
import { h } from "./dom.js";

const TABLE_PX = 240;
const NUMBER_PX = 20; // the smallest cell that holds a number
const BRIGHT = 0.47; // from here on black reads better than white: 4.5 : 1 or more on every colour

export const told = (value) => (value === null ? "none" : value.toFixed(2)); // null: where nothing varies there is none
const short = (value) => (value === null ? "" : told(value).replace("0.", ".").replace("1.00", "1.0")); // ".93"

export function layerTable() {
  const title = h("div", { class: "lab" });
  const grid = h("table", { class: "heat", role: "grid" });
  const ramp = h("canvas", { "aria-hidden": "true" });
  drawRamp(ramp, cividis);
  const said = h("p", { class: "meta" });
  const node = h("div", { class: "heatbox" });
  let drawn = null;

  // `result`: {layers: [block of A][block of B], models: {a, b}}, or null
  function show(result) {
    node.hidden = !result;
    if (!result || result === drawn) return; // else the focus would be lost
    drawn = result;
    const { layers, models: { a, b } } = result;
    title.textContent = `CKA by ${a.layer_noun === b.layer_noun ? a.layer_noun : "layer"}: A up, B across`;
    if (!layers) {
      node.replaceChildren(h("div", { class: "lab" }, "CKA by layer"), h("p", { class: "meta" }, "The layers of these two are not compared."));
      return;
    }
    const [rows, columns] = [layers.length, layers[0].length];
    const px = Math.floor(TABLE_PX / Math.max(rows, columns));
    const mark = (i, n) => (n <= 6 || i === 0 || i === n - 1 || (i + 1) % 4 === 0 ? String(i + 1) : "");
    const cell = (value, i, j) => {
      const words = `${a.layer_noun} ${i + 1} of A, ${b.layer_noun} ${j + 1} of B: ${told(value)}`;
      const colours = value === null ? {} : { background: colourAt(cividis, value), color: value < BRIGHT ? "#fff" : "#000" };
      return h("td", { tabindex: "-1", "aria-label": words[0].toUpperCase() + words.slice(1), style: { height: `${px}px`, ...colours } }, px < NUMBER_PX ? "" : short(value));
    };
    const line = (values, i) => h("tr", {}, h("th", { "aria-hidden": "true" }, mark(i, rows)), values.map((value, j) => cell(value, i, j)));
    grid.setAttribute("aria-label", title.textContent);
    grid.replaceChildren(
      h("colgroup", {}, h("col", { style: { width: "20px" } })), h("tbody", {}, layers.map(line).reverse()),
      h("tfoot", { "aria-hidden": "true" }, h("tr", {}, h("th"), layers[0].map((_, j) => h("th", {}, mark(j, columns))))));
    grid.querySelector("td").tabIndex = 0;
    say(null);
    node.replaceChildren(title, grid, h("div", { class: "scale meta" }, h("span", {}, "0"), ramp, h("span", {}, "1")), said);
  }

  const say = (cell) => { said.textContent = cell?.getAttribute("aria-label") ?? ""; };
  const cellOf = (event) => event.target.closest("td");
  grid.addEventListener("pointerover", (event) => say(cellOf(event)));
  grid.addEventListener("pointerleave", () => say(grid.querySelector("td:focus")));
  grid.addEventListener("focusout", () => say(null));
  grid.addEventListener("focusin", (event) => {
    for (const cell of grid.querySelectorAll("td")) cell.tabIndex = cell === event.target ? 0 : -1;
    say(event.target);
  });
  grid.addEventListener("keydown", (event) => {
    const cell = cellOf(event);
    if (!cell || event.ctrlKey || event.metaKey || event.altKey) return;
    const row = cell.parentNode;
    const inRow = (other) => other?.cells[cell.cellIndex];
    const next = { ArrowUp: inRow(row.previousSibling), ArrowDown: inRow(row.nextSibling), ArrowLeft: cell.previousSibling, ArrowRight: cell.nextSibling, Home: row.cells[1], End: row.lastChild };
    if (!Object.hasOwn(next, event.key)) return;
    event.preventDefault();
    if (next[event.key]?.tagName === "TD") next[event.key].focus(); // else it is at the edge
  });

  return { node, show };
}
