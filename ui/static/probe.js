// Two models over a probe set: which pictures' neighbourhoods changed most, and how alike the models are in all.

import { get } from "./ask.js";
import { progressBar } from "./dialog.js";
import { count, duration, h, note, save } from "./dom.js";
import { layerTable, told } from "./layertable.js";

const SHOWN = 10; // neighbours of a picture, of each model
const MOST_LOSSES = 3;
const ETA_MS = 10_000; // after this the time that is left is told
const percent = (share) => `${(100 * share).toFixed(0)} %`;

// `ask(question)` takes it to Python; `look(file)` puts a picture of the set into the tray; `changed()` after a result
export function probeSection({ ask, look, changed }) {
  let models = null; // {a, b}: facts of both
  let sets = []; // {id, title, count, words}
  let running = null; // {since, done, all, words}
  let result = null; // what was judged, with {set, models}
  let problem = null;
  let chosen = 0; // place in result.changed
  let wanted = null; // a set to be compared on as soon as it is known

  // ---- what stands where
  const set = h("select", { "aria-label": "Probe set", onchange: () => { stop(); draw(); } });
  const go = h("button", { type: "button", class: "btn pri", onclick: () => run() });
  const cancel = h("button", { type: "button", class: "btn", onclick: stop }, "Cancel");
  const bar = progressBar("Comparing on the probe set");
  const words = h("span", { role: "status" });
  const time = h("span", { class: "meta" });
  const busy = h("div", { class: "working" }, words, time, bar.node);
  const about = h("p", { class: "meta" });
  const slot = h("div", { class: "slot", "aria-live": "polite" });
  const figures = h("dl", { class: "measures" });
  const csv = h("button", { type: "button", class: "btn small", onclick: saveCsv }, "CSV");
  const meta = h("span", { class: "meta" });
  const list = h("div", { class: "changed", role: "group", "aria-label": "Pictures that changed most", tabindex: "0" });
  const beside = h("div", { class: "kin" });
  const layers = layerTable();
  const node = h("section", { class: "probe", "aria-label": "What changed most" },
    h("div", { class: "head" }, h("h2", {}, "What changed most"), meta, csv),
    h("div", { class: "probegrid" },
      h("div", { class: "ask" }, h("label", { class: "fld" }, h("span", { class: "lab" }, "Probe set"), set), go, cancel, busy, slot, figures, about),
      list, beside, layers.node));

  // ---- which models, which sets
  async function use(a, b) {
    if (models?.a.handle === a.handle && models.b.handle === b.handle) return;
    stop();
    models = { a, b };
    result = problem = null;
    draw();
    const mine = models;
    const answers = await Promise.all([a, b].map((model) => get(`api/probes?model=${model.handle}`)));
    if (mine !== models) return;
    const found = new Map(answers.flatMap((answer) => (Array.isArray(answer) ? answer : [])).map((one) => [one.id, one]));
    sets = [...found.values()];
    problem = sets.length ? null : answers.find((answer) => answer.error)?.error ?? null;
    if (problem) models = null; // to be asked again
    const before = set.value;
    set.replaceChildren(...sets.map((one) => h("option", { value: one.id }, one.title)));
    if (found.has(wanted ?? before)) set.value = wanted ?? before;
    const isWanted = wanted && found.has(wanted);
    wanted = null;
    if (isWanted) run();
    else draw();
  }
  const now = () => sets.find((one) => one.id === set.value) ?? null;

  // ---- asking: some pictures at a time, so that stopping is not asking on
  function stop() {
    if (!running) return;
    clearInterval(running.clock);
    running = null;
    draw();
  }
  async function run() {
    stop();
    const mine = running = { since: performance.now(), done: 0, of: now().count, all: 2 * now().count, words: "" };
    const { id, title } = now();
    mine.clock = setInterval(showTime, 200);
    problem = null;
    draw();
    const asked = async (question) => {
      const answer = await ask({ ...question, probe: id });
      if (mine === running && answer?.error) throw answer.error;
      return mine === running ? answer : null;
    };
    try {
      for (const [i, side] of ["a", "b"].entries()) {
        const { handle, name } = models[side];
        for (let start = 0, total = 1, losses = 0; start < total;) {
          mine.words = `${side.toUpperCase()} · ${name}`;
          showTime();
          const answer = await asked({ ask: "probe", model: handle, start });
          if (!answer) return;
          losses += answer.done <= start; // what the server had kept may be dropped by it; it then begins again
          if (losses > MOST_LOSSES) throw { title: "The pictures are not kept long enough.", text: "Too much goes on here at once; try again later." };
          ({ done: start, total } = answer);
          Object.assign(mine, { done: i * total + start, of: total, all: 2 * total });
          showTime();
        }
      }
      mine.words = "Comparing neighbourhoods";
      showTime();
      const judged = await asked({ ask: "judge", model: models.a.handle, other: models.b.handle });
      if (!judged) return;
      result = { ...judged, set: id, title, models };
      chosen = 0;
    } catch (error) {
      problem = error.title ? error : { title: "The models could not be compared.", text: "Try again." };
    }
    stop();
    draw();
    changed();
  }

  // ---- drawing
  function showTime() {
    if (!running) return;
    const gone = performance.now() - running.since;
    const left = gone > ETA_MS && running.done ? ` · about ${duration((gone / 1000 / running.done) * (running.all - running.done))} left` : "";
    words.textContent = running.words;
    const ofThis = running.done > running.of ? running.done - running.of : running.done;
    time.textContent = `${count(ofThis)} of ${count(running.of)} pictures · ${(gone / 1000).toFixed(1)} s${left}`;
    bar.show(running.done, running.all);
  }
  function draw() {
    const one = now();
    const isFresh = result && result.set === set.value;
    go.textContent = one ? `Compare on ${count(one.count)} pictures` : "Compare";
    go.disabled = !one;
    const [from, to] = running ? [go, cancel] : [cancel, go]; // one stands in the other's place, with the focus
    const hadFocus = document.activeElement === from;
    to.hidden = false;
    if (hadFocus) to.focus();
    from.hidden = true;
    busy.hidden = !running;
    set.disabled = !sets.length;
    const hasStarted = Boolean(running ?? result ?? wanted); // takes the room of the results at once
    about.textContent = isFresh ? "" : [hasStarted ? "" : "Finds the pictures whose neighbours differ most between the two models.", one?.words].filter(Boolean).join(" ");
    slot.replaceChildren(...(problem ? [note(problem)] : []));
    node.classList.toggle("started", hasStarted);
    node.classList.toggle("old", Boolean(running && result) || Boolean(result && !isFresh));
    csv.disabled = !result;
    meta.textContent = result ? `${count(result.n)} pictures, ${result.title} · ${result.k} neighbours each, ringed where both have them` : "";
    drawFigures();
    drawList();
    drawKin();
    layers.show(result);
  }
  function drawFigures() {
    figures.hidden = !result;
    if (!result) return;
    const figure = (name, value, text) => h("div", {}, h("dt", { class: "lab" }, name), h("dd", {}, h("b", {}, value), h("span", { class: "meta" }, text)));
    figures.replaceChildren(
      figure("CKA", told(result.cka), "linear, debiased; 0: nothing in common, 1: the same but for a turn and a scale"),
      figure("Mutual k-NN", percent(result.mutual_knn), `of ${result.k} nearest pictures are the same; chance ${(100 * result.chance).toFixed(1)} %`));
  }
  const source = (index) => `api/probe/${result.set}/${index}`;
  function drawList() {
    const stamp = result ? JSON.stringify([result.set, result.changed]) : "";
    if (list.dataset.stamp === stamp && stamp) {
      [...list.children].forEach((tile, i) => tile.setAttribute("aria-pressed", String(i === chosen)));
      return;
    }
    list.dataset.stamp = stamp;
    if (!result) {
      list.replaceChildren(h("p", { class: "meta" }, "The pictures whose neighbours differ most appear here, the most changed first."));
      return;
    }
    list.replaceChildren(...result.changed.map((one, i) => h("button", { type: "button", class: "shot", "aria-pressed": String(i === chosen), onclick: () => { chosen = i; drawList(); drawKin(); } },
      h("img", { src: source(one.index), alt: one.name ?? `Picture ${one.index}`, loading: "lazy" }), h("span", {}, h("b", {}, percent(one.kept)), " stay"))));
  }
  function drawKin() {
    beside.hidden = !result;
    if (!result?.changed.length) return;
    const one = result.changed[chosen];
    const row = (side, indices, others) => {
      const { name } = result.models[side];
      const tile = (index, rank) => {
        const isShared = others.includes(index);
        const other = side === "a" ? "B" : "A";
        return h("img", { src: source(index), class: isShared ? "same" : null, alt: `Neighbour ${rank + 1}: picture ${index}${isShared ? `, also under ${other}` : ""}`, title: isShared ? `also under ${other}` : null });
      };
      return h("div", {}, h("div", { class: "meta" }, h("b", {}, `${side.toUpperCase()} · `), name), h("div", { class: "row10" }, indices.slice(0, SHOWN).map(tile)));
    };
    const button = h("button", { type: "button", class: "btn small", onclick: () => open(one) }, "See its maps");
    beside.replaceChildren(
      h("div", { class: "line spread" }, h("span", { class: "who" }, h("b", {}, one.name ?? `Picture ${one.index}`), h("span", { class: "meta" }, `${percent(one.kept)} of its neighbours stay`)), button),
      row("a", one.a, one.b), row("b", one.b, one.a));
  }
  async function open(one) {
    const response = await fetch(source(one.index));
    if (!response.ok) return;
    const blob = await response.blob();
    const suffix = blob.type.split("/")[1] ?? "png";
    look(new File([blob], `${(one.name ?? `probe-${one.index}`).replace(/\.\w+$/, "").replace(/[^\w-]+/g, "-")}.${suffix}`, { type: blob.type }));
  }
  function saveCsv() {
    const quoted = (text) => `"${String(text).replaceAll('"', '""')}"`;
    const rows = result.changed.map((one, i) => [i + 1, one.index, quoted(one.name ?? ""), one.kept.toPrecision(4), quoted(one.a.join(" ")), quoted(one.b.join(" "))].join(","));
    save(new Blob([["rank,picture,name,kept,neighbours_a,neighbours_b", ...rows].join("\n") + "\n"], { type: "text/csv" }), `changed-${result.set.replace(/[^\w-]+/g, "-")}.csv`);
  }

  draw();
  return {
    node, use, stop,
    restore(id) { wanted = id; },
    get shown() { return result && !running ? result.set : null; }, // the set whose results are on screen
  };
}
