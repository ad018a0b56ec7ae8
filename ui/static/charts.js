// The curves of runs, with plotly.js, which is loaded when the first chart is drawn. Plotly draws lines and axes only: names
// and other texts of a run are hostile, and it would read them as markup.

import { count, h, onTheme } from "./dom.js";

const COLOURS = ["c1", "c5", "c3", "c4", "c2", "c6"]; // of the runs that are compared: Okabe-Ito, those first that are dark enough on white
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
export const MOST_RUNS = COLOURS.length;
const MOST_POINTS = 6000; // more than that are brought anew, thinned out by the server
const LARGE = { left: 40, right: 8, top: 12, bottom: 28 };
const SMALL = { left: 2, right: 6, top: 6, bottom: 4 };
const LABEL_PX = 16;
const PAINT_MS = 2000; // between two drawings of a chart that grows: one costs plotly some 20 ms
const TOKENS = ["bg", "text", "muted", "outline", "warn", "plot-grid", "c1", "c2", "c3", "c4", "c5", "c6"];
const MARKED = { resumed: "outline", alarm: "warn" }; // events with a line of their own
export const MISSING = "The charts need plotly.js, which the server does not have: pip install plotly there, then load this page again. The table below says the same in numbers.";

let loading = null;
// window.Plotly; null where it is not to be had
export const loadPlotly = () => (loading ??= new Promise((done) => {
  document.head.append(h("script", { src: "ui/plotly.min.js", onload: () => done(window.Plotly ?? null), onerror: () => done(null) }));
}));

// ---- what a run has told

// The points and marks of one run, as api/runs/NAME/events sends them bit by bit
export function curves() {
  let parts, marks, next;
  const clear = () => { [parts, marks, next] = [{ steps: {}, probes: {} }, [], 0]; };
  function cut(part, isKept) {
    const kept = (part.step ?? []).map((step, i) => (isKept(step) ? i : -1)).filter((i) => i >= 0);
    if (kept.length < part.step?.length) for (const name of Object.keys(part)) part[name] = kept.map((i) => part[name][i]);
  }
  function append(part, columns) {
    const added = columns.step.length;
    if (!added) return;
    cut(part, (step) => step < columns.step[0]); // a step that is told again counts as it was told last
    const before = part.step?.length ?? 0;
    for (const name of new Set([...Object.keys(part), ...Object.keys(columns)])) {
      part[name] = (part[name] ?? Array(before).fill(null)).concat(columns[name] ?? Array(added).fill(null));
    }
  }
  clear();
  return {
    get next() { return next; }, // what is known, as the server counts it
    get marks() { return marks; },
    // what the server answered to `since`
    take(answer, since) {
      if (since === 0 || answer.reset < 0) clear();
      else if (answer.reset !== undefined) { // the run was taken up again there: what came after is void
        for (const part of Object.values(parts)) cut(part, (step) => step <= answer.reset);
        marks = marks.filter((mark) => mark.step <= answer.reset);
      }
      append(parts.steps, answer.steps.columns);
      append(parts.probes, answer.probes.columns);
      marks = marks.concat(answer.marks);
      next = (parts.steps.step?.length ?? 0) > MOST_POINTS ? 0 : answer.next;
    },
    line(from, name) { // {x, y} without what was not measured
      const { step = [], [name]: values = [] } = parts[from];
      const there = step.map((_, i) => i).filter((i) => Number.isFinite(values[i]));
      return { x: there.map((i) => step[i]), y: there.map((i) => values[i]) };
    },
    last(from, name) {
      const { x, y } = this.line(from, name);
      return x.length ? { step: x.at(-1), value: y.at(-1) } : null;
    },
  };
}

// ---- one chart

// Charts are drawn one a frame, so that the page stays at hand
const waiting = new Set();
function paint() {
  const [draw] = waiting;
  waiting.delete(draw);
  draw?.();
  if (waiting.size) requestAnimationFrame(paint);
}
function enqueue(draw) {
  if (!waiting.size) requestAnimationFrame(paint);
  waiting.add(draw);
}

const fixed = (digits) => (v) => v.toFixed(digits);
const percent = (v) => v.toFixed(1);

// Where ticks of an axis from 0 to `end` stand, at most `most` of them: multiples of 1, 2 or 5 times a power of ten
export function ticks(end, most) {
  const least = Math.max(1, end / most);
  const power = 10 ** Math.floor(Math.log10(least));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= least);
  return Array.from({ length: Math.floor(end / step) + 1 }, (_, i) => i * step);
}

// For each label {width, spots: [[left, middle], ...]} the best of its spots, px: inside the box, clear of the labels before
// it, and over as little as may be of the lines, given as points [[x, y], ...]; of equal ones the first
export function freeSpots(labels, { left, right, top, bottom }, points) {
  const taken = [];
  return labels.map(({ width, spots }) => {
    const cost = ([x, y]) => {
      const isInside = x >= left && x + width <= right && y >= top && y <= bottom;
      const meets = taken.filter((box) => x < box.x + box.width && box.x < x + width && Math.abs(y - box.y) < LABEL_PX).length;
      const covered = points.filter(([px, py]) => px > x - 2 && px < x + width + 2 && Math.abs(py - y) < LABEL_PX / 2 + 1).length;
      return (isInside ? 0 : 1e5) + 1e4 * meets + covered;
    };
    const costs = spots.map(cost);
    const [x, y] = spots[costs.indexOf(Math.min(...costs))];
    taken.push({ x, y, width });
    return [x, y];
  });
}

// A line's end may be labelled beside it or above or below, where there is room
function spotsAt(x, y, width, box) {
  const beside = Math.max(box.left, Math.min(x + 10, box.right - width));
  const away = beside === x + 10 ? [0, -14, 14, -28, 28, -42, 42] : [-15, 17, -31, 33, -47, 49];
  return away.map((dy) => [beside, y + dy]);
}

// A line as points at most `gap` px apart
function along(xs, ys, gap = 6) {
  const points = [];
  xs.forEach((x, i) => {
    const parts = i ? Math.ceil(Math.hypot(x - xs[i - 1], ys[i] - ys[i - 1]) / gap) : 1;
    for (let k = 1; k <= parts; k++) points.push(i ? [xs[i - 1] + ((x - xs[i - 1]) * k) / parts, ys[i - 1] + ((ys[i] - ys[i - 1]) * k) / parts] : [x, ys[i]]);
  });
  return points;
}

const pen = new OffscreenCanvas(1, 1).getContext("2d");
function widthOf(text, font) {
  pen.font = font;
  return Math.ceil(pen.measureText(text).width);
}

function inks(node) {
  const style = getComputedStyle(node);
  return { ...Object.fromEntries(TOKENS.map((name) => [name, style.getPropertyValue(`--ui-${name}`).trim()])), sans: style.getPropertyValue("--ui-sans").trim() || "sans-serif" };
}

// `words` makes text of a value. `floor`: the axis reaches down to it. A small chart has no axes; its newest value stands
// beside its name.
export function lineChart({ title, unit = "", words = fixed(2), floor = null, isSmall = false }) {
  const told = h(isSmall ? "b" : "span", { class: isSmall ? "now" : "meta" });
  const surface = h("div", { class: "surface", "aria-hidden": "true" });
  const over = h("div", { class: "over", "aria-hidden": "true" });
  const tip = h("div", { class: "tip", hidden: true, "aria-hidden": "true" });
  const plot = h("div", { class: "plot", role: "img", "aria-label": title }, surface, over, tip);
  const node = h("section", { class: `chart${isSmall ? " small" : ""}`, "aria-label": title },
    h("div", { class: "head" }, h(isSmall ? "h3" : "h2", {}, title), told), plot);
  const said = (value) => `${words(value)}${unit && ` ${unit}`}`;
  let data = null; // {lines, chances, marks, end, none}
  let plotly = null;
  let isSeen = false;
  let isStale = false;
  let timer = null;
  let drawn_ms = -Infinity;
  let [shown, owner] = ["", ""]; // what was last asked to be drawn
  let scale = null; // {x(step), y(value)} in px of the plot

  // of: whose lines they are; lines: [{label, atEnd (what its end is labelled with, if not so), colour, dash, isDotted, x, y}]; chances: [{value, text}]; marks: [{step, event}]; none: what is said without a point
  function show(of, given, meta) {
    data = given;
    const first = data.lines[0];
    told.textContent = isSmall ? (first?.y.length ? said(first.y.at(-1)) : "–") : meta;
    const ends = data.lines.filter((line) => line.y.length).map((line) => `${line.label} ${said(line.y.at(-1))} at step ${count(line.x.at(-1))}`);
    plot.setAttribute("aria-label", [`${title}: ${ends.join("; ") || data.none || "nothing measured yet"}`, ...data.chances.map((chance) => chance.text)].join("; "));
    const key = JSON.stringify([data.end, data.none, data.chances, data.marks.length, data.lines.map((line) => [line.label, line.x.length, line.x.at(-1), line.y.at(-1)])]);
    if (key === shown && of === owner) return;
    const drawn = data.lines.filter((line) => line.x.length).length;
    later(of === owner && drawn > 0 && surface.data?.length === 2 * drawn); // a line's first points are drawn at once
    [shown, owner] = [key, of];
  }
  function later(isGrowing = false) {
    isStale = true;
    clearTimeout(timer);
    const rest = isGrowing ? drawn_ms + PAINT_MS - performance.now() : 0;
    if (isSeen) timer = setTimeout(() => enqueue(draw), Math.max(0, rest));
  }

  function box(width, height) {
    const margin = isSmall ? SMALL : LARGE;
    return { left: margin.left, right: width - margin.right, top: margin.top, bottom: height - margin.bottom };
  }
  function range() {
    const values = [...data.lines.flatMap((line) => line.y), ...data.chances.map((chance) => chance.value)];
    if (!values.length) return [0, 1];
    let [low, high] = [floor ?? Infinity, -Infinity];
    for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
    const pad = 0.08 * (high - low) || 0.1 * Math.abs(high) || 1;
    return [low === floor ? low : low - pad, high + pad];
  }

  async function draw() {
    plotly ??= await loadPlotly();
    const [width, height] = [surface.clientWidth, surface.clientHeight];
    if (!plotly || !width || !data) return;
    isStale = false;
    drawn_ms = performance.now();
    const ink = inks(node);
    const { left, right, top, bottom } = box(width, height);
    const [low, high] = range();
    const end = Math.max(1, data.end);
    scale = { x: (step) => left + ((right - left) * step) / end, y: (value) => bottom - ((bottom - top) * (value - low)) / (high - low) };
    const last = data.end ? `${count(end)} ${end === 1 ? "step" : "steps"}` : "";
    const room = right - widthOf(last, `12px ${ink.sans}`) - 24;
    const steps = isSmall ? [] : ticks(end, width < 420 ? 2 : 4).filter((step) => scale.x(step) < room);
    const lines = data.lines.filter((line) => line.x.length);
    const traces = lines.flatMap((line) => [
      { x: line.x, y: line.y, mode: line.isDotted ? "lines+markers" : "lines", line: { color: ink[line.colour], width: isSmall ? 1.5 : 2, dash: line.dash }, marker: { size: 6, color: ink.bg, line: { color: ink[line.colour], width: 2 } }, hoverinfo: "none", cliponaxis: false },
      { x: [line.x.at(-1)], y: [line.y.at(-1)], mode: "markers", marker: { size: isSmall ? 5 : 8, color: ink[line.colour] }, hoverinfo: "skip", cliponaxis: false },
    ]);
    const rule = (x0, x1, y0, y1, color, dash) => ({ type: "line", xref: "x", yref: y0 === null ? "paper" : "y", x0, x1, y0: y0 ?? 0, y1: y1 ?? 1, line: { color, width: 1, dash }, layer: "below" });
    const shapes = [
      ...data.chances.map(({ value }) => rule(0, end, value, value, ink.outline, "dash")),
      ...data.marks.map(({ step, event }) => rule(step, step, null, null, ink[MARKED[event]], event === "alarm" ? "dot" : "solid")),
    ];
    const axis = { fixedrange: true, zeroline: false, showline: false, ticks: "", tickfont: { color: ink.muted, size: 12 } };
    const layout = {
      width, height, margin: { l: left, r: width - right, t: top, b: height - bottom, pad: 0 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: ink.sans, size: 12, color: ink.muted }, showlegend: false, hovermode: lines.length ? "x" : false, hoverdistance: -1, spikedistance: -1, dragmode: false, shapes, separators: ".\u2009",
      xaxis: { ...axis, range: [0, end], showgrid: false, showticklabels: !isSmall, tickvals: steps, tickformat: ",d", showspikes: true, spikemode: "across", spikesnap: "hovered data", spikethickness: 1, spikedash: "solid", spikecolor: ink.outline },
      yaxis: { ...axis, range: [low, high], showgrid: !isSmall, gridcolor: ink["plot-grid"], showticklabels: !isSmall && (lines.length > 0 || data.chances.length > 0), nticks: 6, ticklabelstandoff: 8 },
    };
    await plotly.react(surface, traces, layout, { displayModeBar: false, doubleClick: false, showTips: false });
    if (!surface.dataset.heard) {
      surface.dataset.heard = "1";
      surface.on("plotly_hover", ({ points }) => showTip(points[0].x));
      surface.on("plotly_unhover", () => { tip.hidden = true; });
    }
    writeOver(lines, ink, { left, right, top, bottom, width, height }, last);
  }

  function writeOver(lines, ink, area, last) { // texts that stand in the plot
    if (isSmall) return;
    const [plain, bold] = [`12px ${ink.sans}`, `600 12px ${ink.sans}`];
    const labels = [
      ...data.chances.map(({ text, value }) => {
        const width = widthOf(text, plain);
        const y = scale.y(value);
        const lefts = [1, 0.75, 0.5, 0.25, 0].map((t) => area.left + 4 + (area.right - width - area.left - 4) * t);
        return { text, width, kind: "chance", spots: lefts.flatMap((left) => [[left, y - 10], [left, y + 10]]) };
      }),
      ...lines.map((line) => {
        const text = line.atEnd ?? (line.label.length > 24 ? `${line.label.slice(0, 23)}…` : line.label);
        const width = widthOf(text, bold);
        return { text, width, kind: "end", spots: spotsAt(scale.x(line.x.at(-1)), scale.y(line.y.at(-1)), width, area) };
      }),
    ];
    const spots = freeSpots(labels, { ...area, top: 4 }, [...lines.map((line) => [line.x.map(scale.x), line.y.map(scale.y)]), ...data.chances.map(({ value }) => [[area.left, area.right], [scale.y(value), scale.y(value)]])].flatMap(([xs, ys]) => along(xs, ys)));
    over.replaceChildren(h("span", { class: "meta lastx", style: { right: `${area.width - area.right}px`, top: `${area.bottom + 1}px` } }, last),
      ...labels.map(({ text, kind }, i) => h("span", { class: kind, style: { left: `${spots[i][0]}px`, top: `${spots[i][1] - LABEL_PX / 2}px` } }, text)),
      ...(lines.length || !data.none ? [] : [h("span", { class: "none meta", style: { left: `${area.left}px`, right: `${area.width - area.right}px` } }, data.none)]));
  }

  function showTip(step) {
    const near = ({ x }) => x.reduce((best, value, i) => (Math.abs(value - step) < Math.abs(x[best] - step) ? i : best), 0);
    const lines = data.lines.filter((line) => line.x.length);
    const rows = lines.map((line) => ({ line, at: near(line) })).filter(({ line, at }) => line.x[at] === step);
    tip.replaceChildren(h("span", { class: "meta" }, `step ${count(step)}`), ...rows.map(({ line, at }) => h("span", { class: "value" }, sample(line), h("span", {}, line.label), h("b", {}, said(line.y[at])))));
    tip.hidden = false;
    const [px, wide] = [scale.x(step), tip.offsetWidth];
    tip.style.left = `${px + 12 + wide <= surface.clientWidth ? px + 12 : Math.max(0, px - 12 - wide)}px`;
  }

  new IntersectionObserver((entries) => {
    isSeen = entries.at(-1).isIntersecting;
    if (isSeen && isStale) later();
  }, { rootMargin: "200px" }).observe(node);
  new ResizeObserver(() => later()).observe(surface);
  onTheme(() => later());
  return { node, show };
}

// A short piece of a line as it is drawn
function sample({ colour, dash = "solid" }) {
  const strokes = { solid: "none", dash: "5 3", dot: "2 2", dashdot: "5 2 1 2", longdash: "8 3", longdashdot: "8 2 1 2" };
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS(svg.namespaceURI, "path");
  const given = [[svg, { viewBox: "0 0 20 8", class: "sample", "aria-hidden": "true" }], [line, { d: "M0 4h20", stroke: `var(--ui-${colour})`, "stroke-width": 2, "stroke-dasharray": strokes[dash] }]];
  for (const [one, attributes] of given) for (const [name, value] of Object.entries(attributes)) one.setAttribute(name, value);
  svg.append(line);
  return svg;
}

// ---- all charts of a run, or of several

const FIGURES = [ // the two large ones first
  { title: "Loss and KL", from: "steps", keys: [["loss", "loss"], ["kl", "KL"]], unit: "nats", compared: "Loss" },
  { title: "k-NN top-1", from: "probes", keys: [["knn_top1", "k-NN top-1"]], unit: "%", words: percent, floor: 0 },
  { title: "Collapse gauge", from: "steps", keys: [["collapse_gauge", "collapse gauge"]], floor: 0 },
  { title: "Agreement", from: "steps", keys: [["agreement", "agreement"]], floor: 0 },
  { title: "Effective rank", from: "probes", keys: [["rankme", "effective rank"]], words: fixed(1), floor: 0 },
  { title: "Learning rate", from: "steps", keys: [["lr", "learning rate"]], words: (v) => v.toExponential(1), floor: 0 },
  { title: "Temperature", from: "steps", keys: [["teacher_temperature", "teacher temperature"]], words: fixed(3) },
  { title: "Momentum", from: "steps", keys: [["momentum", "teacher momentum"]], words: fixed(4) },
  { title: "Images/s", from: "steps", keys: [["images_per_s", "images/s"]], words: count, floor: 0 },
  { title: "Waiting share", from: "steps", keys: [["wait_share", "waiting share"]], words: (v) => (100 * v).toFixed(0), unit: "%", floor: 0 },
];
const LARGE_ONES = 2;

export function runCharts() {
  const charts = FIGURES.map(({ title, unit, words, floor }, i) => lineChart({ title, unit, words, floor, isSmall: i >= LARGE_ONES }));
  const key = h("div", { class: "runkey", "aria-label": "Runs that are compared", role: "group", hidden: true });
  const missing = h("p", { class: "meta", hidden: true }, MISSING);
  const table = h("div", { class: "tablebox" });
  const fold = h("details", { class: "fold" }, h("summary", {}, "Show as table"), table);
  const grid = h("div", { class: "charts" }, charts.slice(0, LARGE_ONES).map((chart) => chart.node));
  const small = h("div", { class: "charts smalls" }, charts.slice(LARGE_ONES).map((chart) => chart.node));
  loadPlotly().then((plotly) => {
    missing.hidden = Boolean(plotly);
    grid.hidden = small.hidden = !plotly;
    if (!plotly) fold.open = true;
  });

  // runs: [{name, curves, detail (or null), steps}], the chosen one first
  function show(runs) {
    const isCompared = runs.length > 1;
    const [main] = runs;
    const of = runs.map((run) => run.name).join("/");
    const end = Math.max(...runs.map((run) => run.steps ?? 0), ...runs.map((run) => run.curves.last("steps", "loss")?.step ?? 0)); // 0: not known yet
    const marks = main.curves.marks.filter((mark) => mark.event in MARKED);
    FIGURES.forEach((figure, i) => {
      const keys = isCompared ? figure.keys.slice(0, 1) : figure.keys;
      const own = keys.map(([name, label], k) => ({ label, colour: i === 1 ? "c3" : ["c1", "c5"][k], dash: DASHES[k], ...main.curves.line(figure.from, name) }));
      if (i === 1 && own[0].y.length) own[0].atEnd = `${percent(own[0].y.at(-1))} %`;
      const theirs = () => runs.map((run, k) => ({ label: run.name, colour: COLOURS[k], dash: DASHES[k], ...run.curves.line(figure.from, keys[0][0]) }));
      const isDotted = figure.from === "probes" && i < LARGE_ONES;
      const lines = (isCompared ? theirs() : own).map((line) => ({ ...line, isDotted: isDotted && line.x.length < 40 }));
      charts[i].show(of, { lines, chances: chances(i, runs), marks, end, none: noneWords(i, main) }, metaWords(i, main, isCompared));
    });
    charts[0].node.querySelector("h2").textContent = isCompared ? "Loss" : FIGURES[0].title;
    key.hidden = !isCompared;
    key.replaceChildren(...(isCompared ? runs.map((run, k) => h("span", {}, sample({ colour: COLOURS[k], dash: DASHES[k] }), run.name)) : []));
    writeTable(runs, isCompared);
  }

  function chances(i, runs) {
    const found = new Map();
    for (const { detail } of runs) {
      if (i === 0 && detail?.chance) found.set(detail.chance, `chance, ln ${count(detail.config.block_size)} = ${detail.chance.toFixed(3)}`);
      if (i === 1 && detail?.classes) found.set(100 / detail.classes, `chance, ${(100 / detail.classes).toFixed(2)} %`);
    }
    return [...found].map(([value, text]) => ({ value, text }));
  }
  function metaWords(i, { detail }) {
    if (!detail) return "";
    return i === 0 ? `nats, every ${count(detail.config.log_every)} ${detail.config.log_every === 1 ? "step" : "steps"}` : ["%", detail.classes ? `${count(detail.classes)} classes` : "", "k = 20"].filter(Boolean).join(", ");
  }
  function noneWords(i, { detail, curves: of }) {
    if (i === 1 && of.last("probes", "rankme")) return "The pictures have no classes, so there is no k-NN probe.";
    return i === 1 && detail ? `The first probe comes with step ${count(Math.min(detail.config.probe_every, detail.run.steps ?? Infinity))}.` : "The first point comes with the first steps.";
  }

  function writeTable(runs, isCompared) {
    const rows = FIGURES.flatMap((figure) => figure.keys.map(([name, label]) => [`${label}${figure.unit ? `, ${figure.unit}` : ""}`,
      ...runs.flatMap((run) => {
        const last = run.curves.last(figure.from, name);
        return last ? [(figure.words ?? fixed(2))(last.value), ...(isCompared ? [] : [count(last.step)])] : ["–", ...(isCompared ? [] : ["–"])];
      })]));
    const head = ["Figure", ...(isCompared ? runs.map((run) => run.name) : ["Last value", "At step"])];
    const said = JSON.stringify([head, rows]);
    if (table.dataset.said === said) return;
    table.dataset.said = said;
    table.replaceChildren(h("table", { class: "tbl" }, h("thead", {}, h("tr", {}, head.map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, rows.map((cells) => h("tr", {}, cells.map((cell) => h("td", {}, cell)))))));
  }

  return { node: h("section", { class: "curves", "aria-label": "Curves" }, key, missing, grid, small, fold), show };
}
