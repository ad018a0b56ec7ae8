// What stands beside a pair: a histogram of scores, a table whose rows can be chosen, tiles of memories.

import { h } from "./dom.js";
import { histogram } from "./matching.js";

const BINS = 30;
const [WIDE, TALL, FOOT, HEAD] = [420, 200, 20, 20];
const SVG = "http://www.w3.org/2000/svg";

function s(tag, props, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(props)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

const heading = (title, meta) => h("div", { class: "head" }, h("h2", {}, title), h("span", { class: "meta" }, meta));

// Scores are cosines; bars of those below `low` step back
export function drawHistogram(section, { title, meta, scores, low, count }) {
  const from = Math.min(0.98, Math.floor(20 * Math.min(...scores, 0.95)) / 20);
  const counts = histogram(scores, from, BINS);
  const most = Math.max(1, ...counts);
  const x = (score) => ((score - from) / (1 - from)) * WIDE;
  const svg = s("svg", { viewBox: `0 0 ${WIDE} ${TALL}`, class: "histogram", role: "img", "aria-label": `Histogram of ${scores.length} scores from ${from.toFixed(2)} to 1; ${count} are at least ${low.toFixed(2)}; the tallest bar has ${most}` });
  counts.forEach((n, i) => {
    const tall = (n / most) * (TALL - FOOT - HEAD);
    const end = from + ((i + 1) / BINS) * (1 - from);
    svg.append(s("rect", { x: (i * WIDE) / BINS + 0.5, y: TALL - FOOT - tall, width: WIDE / BINS - 1, height: tall, class: end > low ? "on" : "off" }));
  });
  svg.append(s("line", { x1: 0, x2: WIDE, y1: TALL - FOOT + 0.5, y2: TALL - FOOT + 0.5, class: "axis" }));
  for (const t of [0, 0.25, 0.5, 0.75, 1]) {
    svg.append(s("text", { x: t * WIDE, y: TALL - 5, "text-anchor": t === 0 ? "start" : t === 1 ? "end" : "middle", class: "tick" }, (from + t * (1 - from)).toFixed(2)));
  }
  const at = Math.min(WIDE, Math.max(0, x(low)));
  svg.append(s("line", { x1: at, x2: at, y1: 0, y2: TALL - FOOT, class: "mark" }));
  const isLeft = at < WIDE * 0.7;
  svg.append(s("text", { x: at + (isLeft ? 5 : -5), y: 11, "text-anchor": isLeft ? "start" : "end", class: "told" }, `shown ≥ ${low.toFixed(2)}`));
  section.replaceChildren(heading(title, meta), svg);
}

// `onchoose(index | null)` hears which row is under the pointer or has the focus
export function drawTable(section, { title, meta, head, rows, empty, chosen = null, onchoose }) {
  const kept = section.querySelector("tbody");
  const isSame = kept && onchoose && kept.dataset.rows === JSON.stringify(rows);
  if (isSame) { // only another row is chosen: the focus stays
    [...kept.children].forEach((row, i) => row.setAttribute("aria-selected", String(i === chosen)));
    return;
  }
  const line = (cells, i) => h("tr", onchoose ? { tabindex: "0", "aria-selected": String(i === chosen), onpointerenter: () => onchoose(i), onfocus: () => onchoose(i), onpointerleave: () => onchoose(null), onblur: () => onchoose(null) } : {},
    cells.map((cell) => h("td", {}, String(cell))));
  section.replaceChildren(heading(title, meta), rows.length
    ? h("table", { class: "tbl" }, h("thead", {}, h("tr", {}, head.map((name) => h("th", { scope: "col" }, name)))), h("tbody", { "data-rows": JSON.stringify(rows) }, rows.map(line)))
    : h("p", { class: "meta" }, empty));
}

// `rows` null: they are on their way, `old` ones stay meanwhile. A row that is the `same` in another memory is ringed.
export function memoryTiles(section, { title, meta, text, action, rows, old, problem }) {
  const tile = (row) => h("figure", { class: row.same ? "memory same" : "memory" },
    h("div", { class: "pic" }, row.thumb ? h("img", { src: row.thumb, alt: `Memory in slot ${row.slot}${row.class_name ? `, ${row.class_name}` : ""}${row.same ? ", in both" : ""}` }) : h("span", { class: "meta none" }, "picture not kept")),
    h("figcaption", {}, h("b", {}, row.score.toFixed(3)), h("span", { class: "meta" }, row.class_name ?? `slot ${row.slot}`)));
  const body = text ? [h("p", { class: "meta" }, text), ...(action ? [action] : [])]
    : problem ? [h("p", { class: "meta" }, `${problem.title} ${problem.text}`)]
      : [h("div", { class: `memories${rows ? "" : " old"}` }, (rows ?? old ?? []).map(tile))];
  section.replaceChildren(heading(title, meta), ...body);
}
