// The tab Train: the runs of this machine on the left, beside them one of them, or the form of a new one.

import { get, post } from "./ask.js";
import { count, duration, h, note, showTab } from "./dom.js";
import { TINTS, WORDS, isLive } from "./jobs.js";
import { openModel, opening } from "./opening.js";
import { runView } from "./runview.js";
import { doors, session, whileVisible, writeLink } from "./session.js";
import { trainForm } from "./trainform.js";

const LIVE_MS = 1000; // between two looks at the runs while one goes on
const REST_MS = 6000;

const isNarrow = () => matchMedia("(max-width: 760px)").matches; // the list stands above the run

// "12 400 of 20 000 · 41 min left", or what is to be said instead
function line(run) {
  const far = run.step === null ? "" : run.steps ? `${count(run.step)} of ${count(run.steps)}` : `step ${count(run.step)}`;
  if (run.state === "failed" || run.state === "lost") return run.message || far;
  if (run.state === "waiting") return run.words || "starting";
  if (run.state === "running") {
    const left = run.eta_s === null ? "" : `${duration(run.eta_s)} left`;
    return [far || "getting ready", run.words || left, run.alarm].filter(Boolean).join(" · ");
  }
  return [far, run.state === "finished" && run.worked_s ? duration(run.worked_s) : ""].filter(Boolean).join(" · ");
}

// An alert is read aloud when it is put there, so once
function say(slot, what) {
  const told = JSON.stringify(what);
  if (slot.dataset.told === told) return;
  slot.dataset.told = told;
  slot.replaceChildren(...(what ? [note(what)] : []));
}

export function mount({ element }) {
  let runs = []; // as the server told them, newest first
  let isTold = false; // it has
  let chosen = null; // the name of the run that is shown
  let isNew = false; // the form is shown
  let compared = []; // names of the runs whose curves are laid over those of the chosen one
  let problem = null; // why the list is not up to date
  const { link } = session;
  if (link.get("tab") === "train") {
    chosen = link.get("run");
    isNew = link.has("new");
    compared = (link.get("compare") ?? "").split(",").filter(Boolean);
  }

  // ---- what stands where
  const rows = new Map(); // name -> {node, part, told}
  const total = h("span", { class: "meta" });
  const compare = h("button", { type: "button", class: "btn quiet small", "aria-pressed": "false", onclick: () => { isComparing = !isComparing; if (!isComparing) compared = []; draw(); } }, "Compare");
  let isComparing = compared.length > 0;
  const trouble = h("div", { class: "slot", "aria-live": "polite" });
  const list = h("ul", { class: "runlist" });
  const fresh = h("button", { type: "button", class: "btn", onclick: () => openForm() }, "New run");
  const side = h("nav", { class: "runs", "aria-label": "Runs" }, h("div", { class: "head" }, h("h2", {}, "Runs"), total, compare), trouble, list, fresh);
  const gone = h("div", { class: "slot" });
  const run = runView({ act, changed: look });
  const form = trainForm({ started, closed: closeForm, liveRuns: () => runs.filter(isLive).length });
  const main = h("section", { class: "runmain", "aria-label": "Run" }, gone, run.node, form.node);
  const view = h("div", { class: "train" }, side, main);
  const first = h("button", { type: "button", class: "btn pri", onclick: () => openForm() }, "New run");
  const state = h("div", { class: "blank", hidden: true }, h("p", {}, "No training has been started here yet."), first);
  element.append(view, state);

  // ---- asking
  let timer;
  let turn = 0;
  let lookedAt = -Infinity;
  const isSeen = () => element.offsetParent !== null && !document.hidden;

  async function look() {
    clearTimeout(timer);
    const mine = ++turn;
    lookedAt = performance.now();
    const answer = await get(`api/runs?known=${runs.map((one) => one.rev).join(",")}`);
    if (mine !== turn) return;
    problem = answer?.error ?? null;
    if (answer && !answer.error) {
      const old = new Map(runs.map((one) => [one.id, one]));
      const lived = runs.filter(isLive).length;
      runs = answer.runs.map((one) => (one.state ? one : old.get(one.id)));
      if (isTold && runs.filter(isLive).length !== lived) doors.training?.();
    }
    isTold ||= !problem;
    draw();
    later();
  }
  function later() {
    clearTimeout(timer);
    timer = setTimeout(() => (isSeen() ? look() : rest()), runs.some(isLive) && !problem ? LIVE_MS : REST_MS);
  }
  function wake() {
    if (!isSeen()) return;
    if (performance.now() - lookedAt > LIVE_MS) look();
    else { draw(); later(); }
  }
  function rest() {
    if (shown) run.stop();
    shown = null;
  }
  whileVisible(element, wake);
  document.addEventListener("visibilitychange", wake);

  // What the run's own view asks for: `{error}`, or the server's answer
  async function act(name, verb, body = {}) {
    if (verb === "duplicate") { openForm(name); return {}; }
    if (verb === "compare") {
      compared = body.names;
      isComparing = compared.length > 0;
      draw();
      return {};
    }
    if (verb === "open" || verb === "publish") {
      if (!await openModel(`run:${name}`, { title: name })) return notOpened();
      if (verb === "open") { showTab(body.tab); return {}; }
      if (!session.facts.model.publishable) return { error: { title: "It cannot be published as it is.", text: "Only a bundle on this machine can be; a run writes its own when it is stopped or finished." } };
      doors.publish();
      return {};
    }
    const answer = await post(`api/runs/${encodeURIComponent(name)}/${verb}`, { ...body, rev: runs.find((one) => one.id === name)?.rev ?? "" }) ?? {};
    if (!answer.error && verb === "delete") {
      compared = compared.filter((one) => one !== name);
      if (chosen === name) chosen = null;
    }
    if (!answer.error && verb === "rename" && chosen === name) chosen = answer.run;
    await look();
    if (!answer.error && ["delete", "rename"].includes(verb)) (rows.get(chosen)?.part.row ?? (runs.length ? fresh : first)).focus();
    return answer;
  }

  // Why a model has not come, said once: beside the button where that is on screen, else in the header
  function notOpened() {
    const { problem: what } = opening;
    if (!what || element.offsetParent === null) return {}; // another one was wished meanwhile
    opening.forget();
    return { error: { title: what.title, text: what.text } };
  }

  // ---- which one
  function choose(name) {
    chosen = name;
    isNew = false;
    compared = compared.filter((one) => one !== name);
    draw();
    if (isNarrow()) main.scrollIntoView();
  }
  function openForm(from = null) {
    isNew = true;
    draw();
    form.show(from);
    if (isNarrow()) main.scrollIntoView();
  }
  function closeForm() {
    isNew = false;
    draw();
    fresh.focus();
  }
  async function started(name) {
    chosen = name;
    isNew = false;
    compared = [];
    await look();
    main.scrollIntoView(); // the form was longer
    rows.get(name)?.part.row.focus({ preventScroll: true });
  }
  function tick(name, on) {
    compared = compared.filter((one) => one !== name);
    if (on) compared.push(name);
    draw();
  }
  function keepLink() {
    if (element.offsetParent === null) return;
    writeLink({ tab: "train", run: isNew ? null : chosen, new: isNew ? 1 : null, compare: !isNew && compared.length ? compared.join(",") : null, ...(isNew ? { step: null } : {}) });
  }

  // ---- the list
  function makeRow(name) {
    const part = {
      title: h("b", { title: name }, name), pill: h("span", { class: "pill" }), meta: h("span", { class: "meta" }),
      box: h("input", { type: "checkbox", "aria-label": `Compare with ${name}`, onchange: () => tick(name, part.box.checked) }),
    };
    part.tick = h("label", { class: "tick" }, part.box);
    part.row = h("button", { type: "button", class: "row", onclick: () => choose(name) }, part.title, part.pill, part.meta);
    return { node: h("li", {}, part.tick, part.row), part, told: null };
  }
  function fill({ part }, one) {
    part.pill.replaceChildren(h("i", { class: "dot" }), one.stopping && isLive(one) ? "Stopping" : WORDS[one.state]);
    part.pill.className = `pill ${one.alarm && isLive(one) ? "warn" : TINTS[one.state]}`;
    part.meta.textContent = line(one);
  }
  function drawList() {
    total.textContent = isTold ? count(runs.length) : "";
    compare.hidden = runs.length < 2 || isNew;
    compare.setAttribute("aria-pressed", String(isComparing));
    say(trouble, problem && { title: problem.title, text: isTold ? "What is shown is what it said last; it is asked again." : problem.text });
    for (const name of rows.keys()) if (!runs.some((one) => one.id === name)) rows.delete(name);
    const nodes = runs.map((one) => {
      if (!rows.has(one.id)) rows.set(one.id, makeRow(one.id));
      const row = rows.get(one.id);
      if (row.told !== one) fill(row, one);
      row.told = one;
      const isChosen = !isNew && one.id === chosen;
      row.part.row.setAttribute("aria-current", String(isChosen));
      row.part.tick.hidden = !isComparing || isNew;
      row.part.box.checked = isChosen || compared.includes(one.id);
      row.part.box.disabled = isChosen;
      return row.node;
    });
    if (nodes.length !== list.children.length || nodes.some((node, i) => node !== list.children[i])) list.replaceChildren(...nodes);
    fresh.classList.toggle("pri", !isNew);
    fresh.setAttribute("aria-current", String(isNew));
  }

  // ---- what is beside it
  let shown = null; // the row that the run's view was given
  let laid = ""; // and those it lays over it
  function draw() {
    const names = runs.map((one) => one.id);
    if (isTold) compared = compared.filter((name) => names.includes(name) && name !== chosen);
    if (isTold && !chosen && !isNew && runs.length) chosen = (runs.find(isLive) ?? runs[0]).id;
    const isEmpty = isTold && !runs.length && !isNew && !chosen;
    view.hidden = isEmpty;
    view.classList.toggle("making", isNew);
    state.hidden = !isEmpty;
    drawList();
    const one = isNew ? null : runs.find((other) => other.id === chosen) ?? null;
    const isGone = isTold && !isNew && chosen && !one;
    say(gone, isGone ? { title: "This run is not here (any more).", text: `${chosen}: it has been renamed or deleted.` } : null);
    form.node.hidden = !isNew;
    run.node.hidden = !one;
    if (!isNew) form.hide();
    if (!one) rest();
    else if (one !== shown) run.show(shown = one);
    const others = one ? runs.filter((other) => compared.includes(other.id)) : [];
    const told = others.map((other) => other.rev).join();
    if (told !== laid) run.compare?.(others);
    laid = told;
    keepLink();
  }

  if (isNew) form.show();
  draw();
}
