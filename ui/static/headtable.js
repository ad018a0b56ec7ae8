// Which head matters: what is lost when an attention head is silenced, a table of transformer blocks by heads. It is
// asked block by block from the last to the first, so a row that came is progress, and to ask no more is to cancel.

import { questions } from "./asking.js";
import { commandLine, count, h, note, save, seconds, segmented, shellWord, stemOf } from "./dom.js";
import { looking } from "./looking.js";
import { session, whileVisible } from "./session.js";

const MEASURES = {
  kl: { label: "KL divergence", words: "in nats, between what the memory answers with all heads and with this one silenced; larger matters more", number: (v, most) => v.toFixed(places(most)), effect: (v) => v, told: (v) => `${v.toPrecision(3)} nats` },
  kept: { label: "Memories kept", words: "of the strongest memories, the share that stay among them; less matters more", number: (v) => `${Math.round(100 * v)}`, effect: (v) => 1 - v, told: (v) => `${Math.round(100 * v)} % kept` },
  moved: { label: "Embedding moved", words: "1 − cosine between the embedding with all heads and with this one silenced; larger matters more", number: (v, most) => v.toFixed(places(most)), effect: (v) => v, told: (v) => v.toPrecision(3) },
};
const places = (most) => Math.min(6, Math.max(2, 2 - Math.floor(Math.log10(most)))); // three digits of the largest
const DEEPEST = 45; // per cent of the accent in the darkest cell: its number stays readable

export function mount({ element, props, trigger, watch }) {
  let measure = "kl";
  let table = null; // {model, handle, name, blocks, heads, rows: [block] {kl, kept, moved}, top, slots, temperature, time_s}
  let underWay = null; // {table, since}
  let problem = null;
  let focus = [0, 0]; // the cell that Tab reaches
  const line = questions({ props, trigger, watch });

  const choice = segmented("Effect", Object.entries(MEASURES).map(([name, { label }]) => [name, label]), measure, (name) => { measure = name; draw(); });
  const start = h("button", { type: "button", class: "btn pri", onclick: run }, "Measure");
  const cancel = h("button", { type: "button", class: "btn none", onclick: () => { underWay = null; draw(); start.focus(); } }, "Cancel");
  const csv = h("button", { type: "button", class: "btn", disabled: true, "aria-label": "CSV of the head table", onclick: saveCsv }, "CSV");
  const progress = h("span", { class: "meta", role: "status" });
  const bar = h("div", { class: "bar none" }, h("i", { style: { width: "0" } }));
  const [whose, words, best] = [h("p", { class: "meta" }), h("p", { class: "meta" }), h("span", { class: "meta" })];
  const slot = h("div", { "aria-live": "polite" });
  const grid = h("table", { class: "headgrid", role: "grid", "aria-label": "Effect of silencing each attention head" });
  const command = commandLine();
  const body = h("div", { class: "headbody" },
    h("div", { class: "toolbar" }, start, choice.node, progress, cancel, csv), bar, slot, whose, words, h("div", { class: "gridbox" }, grid), command.node);
  const section = h("section", { class: "headtable", "aria-labelledby": "headtable-title" },
    h("div", { class: "head" }, h("h2", { id: "headtable-title" }, "Which head matters"), best), body);
  element.append(section);

  // ---- asking
  const isHere = (one) => one && session.ready && one.model.handle === session.facts.model.handle && one.handle === session.handle;
  async function run() {
    const { model } = session.facts;
    const name = session.picture?.name ?? "picture.png";
    table = { model, handle: session.handle, name, blocks: model.blocks, heads: model.heads, rows: Array(model.blocks).fill(null), time_s: 0 };
    const mine = underWay = { table, since: performance.now() };
    focus = [model.blocks - 1, 0];
    problem = null;
    if (!model.memory) measure = "moved";
    draw();
    cancel.focus();
    tick(mine);
    for (let block = model.blocks - 1; block >= 0 && underWay === mine; block--) {
      const answer = await line.ask({ ask: "block", model: model.handle, handle: table.handle, block });
      if (underWay !== mine) return;
      if (answer?.error) { problem = answer.error; break; }
      const { kl, kept, moved, top, slots, temperature, time_s } = answer;
      mine.table.rows[block] = { kl, kept, moved };
      Object.assign(mine.table, { top, slots, temperature, time_s: mine.table.time_s + time_s });
      draw();
    }
    if (underWay !== mine) return;
    underWay = null;
    const isFocused = document.activeElement === cancel;
    draw();
    if (isFocused) (start.disabled ? cells[focus[0]][focus[1]] : start).focus({ preventScroll: true });
  }
  function tick(mine) {
    if (underWay !== mine) return;
    showProgress();
    setTimeout(() => tick(mine), 200);
  }

  // ---- drawing
  const done = (one) => one.rows.filter(Boolean).length;
  const measured = () => Boolean(table && done(table));
  const hasMeasure = (name) => (measured() ? table.rows.some((row) => row?.[name]) : name === "moved" || Boolean(session.facts.model?.memory));

  function draw() {
    const { model } = session.facts;
    const hasNoHeads = Boolean(session.ready && model.no_attention);
    section.hidden = session.facts.state === "failed" || hasNoHeads;
    if (hasNoHeads) underWay = null;
    if (hasNoHeads || !session.ready) {
      start.disabled = true;
      return;
    }
    if (underWay && !isHere(underWay.table)) underWay = null; // another picture or model is on screen
    if (!hasMeasure(measure)) measure = "moved";
    for (const name of Object.keys(MEASURES)) choice.button(name).disabled = !hasMeasure(name);
    choice.press(measure);
    start.textContent = `Measure ${model.blocks} × ${model.heads} heads`;
    start.disabled = !session.handle || Boolean(underWay || (isHere(table) && done(table) === table.blocks));
    cancel.classList.toggle("none", !underWay);
    csv.disabled = !measured();
    slot.replaceChildren(...(problem ? [note(problem)] : []));
    const isOld = Boolean(table && !isHere(table));
    grid.classList.toggle("old", isOld);
    whose.hidden = !isOld;
    whose.textContent = isOld ? `These numbers are of ${table.name} with ${table.model.name}; measure again for what is on screen.` : "";
    words.textContent = `Each head of each block is silenced by itself: its output is set to zero before the heads are mixed. ${MEASURES[measure].label}: ${MEASURES[measure].words}.` +
      (hasMeasure("kl") ? "" : " This model has no memory, so only the embedding tells.") + (table?.slots && measure !== "moved" ? ` ${count(table.slots)} slots, temperature ${table.temperature}${measure === "kept" ? `, top ${table.top}` : ""}.` : "");
    showProgress();
    drawGrid(isOld || !table ? table ?? { model, blocks: model.blocks, heads: model.heads, rows: Array(model.blocks).fill(null) } : table);
    const { typed } = model;
    command.text = `python -m analysis heads ${shellWord(session.picture?.name ?? "picture.png")} --model ${shellWord(typed)} --out heads.csv`;
  }
  function showProgress() {
    const share = table ? done(table) / table.blocks : 0;
    bar.classList.toggle("none", !underWay);
    bar.firstChild.style.width = `${100 * share}%`;
    progress.textContent = underWay ? `block ${Math.min(table.blocks, done(table) + 1)} of ${table.blocks} · ${seconds((performance.now() - underWay.since) / 1000)}`
      : measured() && isHere(table) ? done(table) === table.blocks ? `all ${table.blocks} blocks in ${seconds(table.time_s)}` : `${done(table)} of ${table.blocks} blocks; stopped` : "";
  }

  let cells = []; // [block][head]
  function drawGrid(one) {
    if (cells.length !== one.blocks || cells[0]?.length !== one.heads) build(one);
    const { number, effect, told, label } = MEASURES[measure];
    const values = (block) => one.rows[block]?.[measure] ?? null;
    const all = one.rows.flatMap((_, block) => values(block) ?? []);
    const most = Math.max(1e-12, ...all.map(effect));
    const { layer, head } = isHere(one) && looking.shown ? looking.shown : {};
    let largest = null;
    cells.forEach((row, block) => row.forEach((cell, i) => {
      const value = values(block)?.[i];
      const isThere = value !== undefined;
      cell.textContent = isThere ? number(value, most) : "·";
      cell.style.setProperty("--deep", `${isThere ? Math.round((DEEPEST * effect(value)) / most) : 0}%`);
      cell.classList.toggle("none", !isThere);
      cell.setAttribute("aria-label", `Block ${block + 1}, head ${i + 1}: ${isThere ? `${label.toLowerCase()} ${told(value)}` : "not measured"}`);
      cell.setAttribute("aria-selected", String(block === layer && i === head));
      cell.tabIndex = block === focus[0] && i === focus[1] ? 0 : -1;
      if (isThere && (!largest || effect(value) > largest.effect)) largest = { effect: effect(value), block, head: i, value };
    }));
    best.textContent = largest ? `largest effect: block ${largest.block + 1}, head ${largest.head + 1}, ${told(largest.value)}` : "";
  }
  function build(one) {
    focus = [one.blocks - 1, 0];
    cells = Array.from({ length: one.blocks }, (_, block) => Array.from({ length: one.heads }, (_, head) =>
      h("td", { tabindex: "-1", "data-cell": `${block} ${head}` })));
    grid.replaceChildren(
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Block"), cells[0].map((_, head) => h("th", { scope: "col" }, `Head ${head + 1}`)))),
      h("tbody", {}, cells.map((row, block) => h("tr", {}, h("th", { scope: "row" }, String(block + 1)), row))));
  }

  // ---- choosing a cell
  const cellOf = (event) => event.target.closest("[data-cell]")?.dataset.cell.split(" ").map(Number);
  function show([layer, head]) {
    move([layer, head]);
    if (table && table.model.handle !== session.facts.model.handle) return; // heads of a model that is not on screen
    looking.choose({ layer, head });
  }
  function move([block, head]) {
    cells[focus[0]][focus[1]].tabIndex = -1;
    focus = [block, head];
    cells[block][head].tabIndex = 0;
    cells[block][head].focus();
  }
  const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  grid.addEventListener("click", (event) => { const cell = cellOf(event); if (cell) show(cell); });
  grid.addEventListener("keydown", (event) => {
    const cell = cellOf(event);
    if (!cell || event.ctrlKey || event.metaKey || event.altKey) return;
    const within = (value, most) => Math.min(most - 1, Math.max(0, value));
    const [block, head] = cell;
    if (event.key in STEPS) move([within(block + STEPS[event.key][0], cells.length), within(head + STEPS[event.key][1], cells[0].length)]);
    else if (event.key === "Home") move([block, 0]);
    else if (event.key === "End") move([block, cells[0].length - 1]);
    else if (event.key === "Enter" || event.key === " ") show(cell);
    else return;
    event.preventDefault();
  });

  function saveCsv() { // as `python -m analysis heads --out` writes it: blocks and heads from 0
    const text = (values, i) => (values ? values[i].toPrecision(7) : "");
    const lines = table.rows.flatMap((row, block) => (row ? row.moved.map((_, i) => [block, i, text(row.kl, i), text(row.kept, i), text(row.moved, i)].join(",")) : []));
    save(new Blob([["block,head,kl,kept,moved", ...lines].join("\n") + "\n"], { type: "text/csv" }), `${stemOf(table.name)}-heads.csv`);
  }

  whileVisible(element, draw);
  looking.hear(() => { if (element.offsetParent !== null && cells.length) drawn(); });
  let queued = false;
  function drawn() { // only which cell is on screen
    if (queued) return;
    queued = true;
    requestAnimationFrame(() => {
      queued = false;
      const { layer, head } = looking.shown ?? {};
      const isOurs = !table || isHere(table);
      cells.forEach((row, block) => row.forEach((cell, i) => cell.setAttribute("aria-selected", String(isOurs && block === layer && i === head))));
    });
  }
}
