// The view of one run: how it stands and what can be done about it, its curves, and what its snapshots show.

import { get } from "./ask.js";
import { MOST_RUNS, curves, runCharts } from "./charts.js";
import { dialog, progressBar } from "./dialog.js";
import { commandLine, count, duration, h, note } from "./dom.js";
import { cropSheet, filmStrip, snapshotsOf } from "./film.js";
import { TINTS, WORDS, isLive } from "./jobs.js";
import { session, writeLink } from "./session.js";
import { turningMemory } from "./turning.js";

const LOOK_MS = 1000; // between two looks at a run that goes on
const RETRY_MS = 5000; // after one that failed
const PATIENCE_MS = 20_000; // that a stop may take before killing is offered
const SAVING_MS = 60_000; // that "Save now" waits for its checkpoint
const ALARMS = 3; // that are shown; earlier ones are folded
const RETOLD = ["saved", "snapshot", "started", "resumed"]; // marks after which a run is asked about anew
const OPENING = ["open", "publish"]; // verbs that bring a model first
const ENDS = ["stopped", "finished", "failed"];

// "14:02", or with the day when that was another one
function clock(time_s) {
  const [then, now] = [new Date(1000 * time_s), new Date()];
  const time = then.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
  return then.toDateString() === now.toDateString() ? time : `${then.getDate()} ${then.toLocaleString("en", { month: "short" })}, ${time}`;
}
const sentence = (text) => (text ? `${text[0].toUpperCase()}${text.slice(1)}${/[.!?…]$/.test(text) ? "" : "."}` : "");
const rising = (steps) => [...new Set(steps)].sort((a, b) => a - b);

// `act(name, verb, body)` does what a button says and gives the server's answer, {error} if it came to nothing;
// `changed()`: the run's events tell of an end that its row does not know yet.
export function runView({ act, changed = () => {} }) {
  let main = null; // what `trackOf` gives: the run that is shown
  let others = []; // those that are compared with it
  let wished = null; // the step whose snapshot is looked at; null: the newest, also when a newer one comes
  let linked = session.link.get("tab") === "train" ? { run: session.link.get("run"), step: Number(session.link.get("step") ?? NaN) } : null;
  let isOff = true; // stopped, and nothing is asked
  let stopSeen_ms = null; // when the run was first seen saving
  let saveAsked = null; // {marks, at_ms} when "Save now" was clicked
  let busy = null; // the verb of the button whose answer is under way
  let problem = null; // what it was: {title, text, stood, isSilent}; it goes when the run stands otherwise, or the server answers again

  // ---- what stands where
  const name = h("h2", { class: "runname", tabindex: "-1" });
  const rename = h("button", { type: "button", class: "btn quiet small", onclick: startRenaming }, "Rename");
  const field = h("input", { type: "text", "aria-label": "New name", maxlength: "80", autocomplete: "off", spellcheck: "false", onkeydown: (event) => { if (event.key === "Escape") { event.stopPropagation(); endRenaming(); } } });
  const renaming = h("form", { class: "line renaming", hidden: true, onsubmit: (event) => { event.preventDefault(); finishRenaming(); } }, field,
    h("button", { type: "submit", class: "btn small" }, "Save"), h("button", { type: "button", class: "btn quiet small", onclick: () => endRenaming() }, "Cancel"));
  const pill = h("span", { class: "pill" });
  const about = h("span", { class: "meta about" });
  const bar = progressBar("Progress of the run");
  const figures = h("dl", { class: "figures" });
  const buttons = h("div", { class: "line acts" });
  const status = h("p", { class: "meta", role: "status" });
  const trouble = h("div", { class: "slot", "aria-live": "polite" });
  const failure = h("div", { class: "slot" });
  const alarms = h("div", { class: "slot alarms", "aria-live": "polite" });
  const titles = h("div", { class: "line" }, name, renaming, pill, rename, about);
  const head = h("header", { class: "runhead" }, titles, bar.node, figures, buttons, status, trouble, failure, alarms);
  const charts = runCharts();
  const film = filmStrip({ pick: lookAt });
  const turning = turningMemory({ pick: lookAt });
  const crops = cropSheet();
  turning.aside.append(crops.node);
  const command = commandLine();
  const node = h("article", { class: "run" }, head, charts.node, film.node, turning.node, command.node);

  // ---- asking before something is lost
  const askWords = h("p");
  const askGo = h("button", { type: "button", class: "btn danger" });
  const ask = dialog("run-sure", "", h("div", { class: "cardbody" }, askWords, h("div", { class: "line end" }, h("button", { type: "button", class: "btn", onclick: () => ask.close() }, "Cancel"), askGo)));
  node.append(ask.node);
  function sure(title, text, verb, go) {
    ask.title = title;
    askWords.textContent = text;
    askGo.textContent = verb;
    askGo.onclick = () => { ask.close(); go(); };
    ask.show();
  }

  // ---- what is known of a run, and asking for what is not
  function trackOf(row) {
    return { row, curves: curves(), detail: null, snapshots: snapshotsOf(row.id), told: null, isDue: true, problem: null };
  }
  async function bring(track) {
    const { id, rev, state } = track.row;
    const path = `api/runs/${encodeURIComponent(id)}`;
    const since = track.curves.next;
    const answer = await get(`${path}/events?since=${since}`);
    if (answer.error) { track.problem = answer.error; return; }
    track.curves.take(answer, since);
    const isOther = track.told !== state || answer.marks.some((mark) => RETOLD.includes(mark.event));
    if (!track.detail || isOther) {
      const detail = await get(path);
      if (detail.error) { track.problem = detail.error; return; }
      track.detail = detail;
    }
    track.problem = null;
    if (problem?.isSilent) problem = null; // it answers again
    track.told = state;
    track.isDue = isLive(track.row) || track.row.rev !== rev; // what changed meanwhile is asked for again
    if (since > 0 && isLive(track.row) && answer.marks.some((mark) => ENDS.includes(mark.event))) changed();
  }

  let timer = null;
  let isLooking = false;
  const isSeen = () => !isOff && main && !document.hidden && node.offsetParent !== null;
  async function look() {
    clearTimeout(timer);
    if (!isSeen() || isLooking) return;
    isLooking = true;
    const mine = main;
    try {
      for (const track of [main, ...others].filter((one) => one.isDue)) {
        await bring(track);
        if (mine !== main) break;
        draw();
      }
    } finally {
      isLooking = false;
    }
    clearTimeout(timer);
    if (mine !== main) look();
    else if ([main, ...others].some((one) => one.isDue)) timer = setTimeout(look, main.problem ? RETRY_MS : LOOK_MS);
  }
  document.addEventListener("visibilitychange", look);
  new IntersectionObserver(look).observe(node);

  // ---- doing
  async function doIt(verb, body) {
    busy = verb;
    problem = null;
    if (verb === "save") saveAsked = { saves: savesOf(main).length, at_ms: performance.now() };
    drawHead();
    const mine = main;
    const answer = (await act(main.row.id, verb, body)) ?? {};
    busy = null;
    if (answer.error) saveAsked = null;
    if (mine === main) {
      problem = answer.error ? { ...answer.error, stood: standing(main.row), isSilent: answer.silent } : null;
      drawHead();
    }
    return answer;
  }
  const standing = ({ state, stopping }) => `${state} ${stopping}`;
  const savesOf = (track) => track.curves.marks.filter((mark) => mark.event === "saved");

  function startRenaming() {
    field.value = main.row.id;
    edit(true);
    field.focus();
    field.select();
  }
  function endRenaming() {
    edit(false);
    problem = null;
    drawHead();
    rename.focus();
  }
  function edit(on) { renaming.hidden = !on; name.hidden = rename.hidden = on; }
  async function finishRenaming() {
    const wanted = field.value.trim();
    if (busy) return;
    if (!wanted || wanted === main.row.id) { endRenaming(); return; }
    if ((await doIt("rename", { name: wanted })).error) field.focus();
    else edit(false);
  }

  function askKill() {
    const last = main.detail?.checkpoints.at(-1);
    const kept = last === undefined ? "It has saved nothing yet, so all of it is lost." : `Its last checkpoint, of step ${count(last)}, stays; what came after it is lost.`;
    sure(`Kill ${main.row.id} without saving?`, `The trainer is ended at once. ${kept}`, "Kill without saving", () => doIt("kill"));
  }
  function askDelete() {
    const { checkpoints = [], snapshots = [] } = main.detail ?? {};
    const some = (n, noun) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
    const parts = [some(checkpoints.length, "checkpoint"), some(snapshots.length, "snapshot"), "its curves", "its log", ...(["stopped", "finished"].includes(main.row.state) ? ["the bundle in it"] : [])];
    sure(`Delete ${main.row.id}?`, `Its folder goes for good: ${parts.slice(0, -1).join(", ")} and ${parts.at(-1)}. A model of it that is open stays until the page is left.`, "Delete", () => doIt("delete"));
  }

  // ---- the head
  function actions({ state, stopping, saving, has_checkpoint: isSaved }) {
    const button = (label, verb, { kind = "", body, go = () => doIt(verb, body), disabled = false } = {}) => ({ label, kind, go, disabled });
    const open = ["Attention", "Memory"].map((tab) => button(`Open in ${tab}`, "open", { body: { tab } }));
    const rest = [...(isSaved && !session.facts.public ? [button("Publish…", "publish")] : []), button("Duplicate…", "duplicate"), button("Delete…", "delete", { kind: "danger", go: askDelete })];
    if (isLive({ state })) {
      const isSaving = saving || Boolean(saveAsked);
      const stop = state === "waiting" ? (stopping ? "Stopping…" : "Stop") : stopping ? "Saving…" : "Stop and save";
      return [
        ...(state === "running" && !stopping ? [button(isSaving ? "Saving…" : "Save now", "save", { disabled: isSaving })] : []),
        ...(isSaved ? open.slice(0, 1) : []),
        button(stop, "stop", { kind: "danger", disabled: stopping }),
        ...(stopping && performance.now() - stopSeen_ms > PATIENCE_MS ? [button("Kill without saving", "kill", { kind: "danger", go: askKill })] : []),
      ];
    }
    if (state === "finished") return [{ ...open[0], kind: "pri" }, open[1], ...rest];
    return [button("Resume", "resume", { kind: "pri" }), ...(isSaved ? open : []), ...rest];
  }

  let buttonsTold = "";
  function drawButtons(row) {
    const all = actions(row);
    const told = JSON.stringify([row.id, all.map(({ label, disabled }) => [label, disabled])]);
    if (told === buttonsTold) return; // one of them may have the focus
    buttonsTold = told;
    const focused = buttons.contains(document.activeElement) ? document.activeElement.textContent : null;
    buttons.replaceChildren(...all.map(({ label, kind, go, disabled }) => h("button", { type: "button", class: `btn ${kind}`, disabled, onclick: () => { if (!busy) go(); } }, label)));
    if (focused === null) return;
    const same = [...buttons.children].find((one) => one.textContent === focused && !one.disabled);
    (same ?? name).focus({ preventScroll: true }); // not lost at the top of the page
  }

  function statusWords(row) {
    const { state, stopping, words, step } = row;
    const told = sentence(words);
    if (OPENING.includes(busy)) return "Opening it as a model.";
    if (state === "waiting") return stopping ? "It ends without having begun." : told || "Starting.";
    if (state === "running" && stopping) return words ? `Saving: ${words}.` : "Saving, then the run stops.";
    if (state === "running") {
      const saved = savesOf(main).at(-1);
      return row.saving || saveAsked ? "A checkpoint is saved after this step." : told || (justSaved && saved ? `Saved at step ${count(saved.step)}.` : "");
    }
    if (state === "stopped") return step === null ? "Stopped before it began." : `Stopped at step ${count(step)}.`;
    return state === "finished" ? `Finished at step ${count(step)}. It is in the list of models.` : "";
  }
  let justSaved = false;

  function drawFigures(row) {
    const last = (from, of) => main.curves.last(from, of)?.value ?? null;
    const [loss, knn] = [row.loss ?? last("steps", "loss"), row.knn_top1 ?? last("probes", "knn_top1")];
    const is = (value) => value !== null && value !== undefined;
    const best = main.detail?.best?.knn_top1;
    const pairs = [
      ["Step", row.steps ? `${count(row.step ?? 0)} / ${count(row.steps)}` : is(row.step) ? count(row.step) : "–"],
      ...(row.state === "running" ? [["Time left", is(row.eta_s) && !row.stopping ? duration(row.eta_s) : "–"], ["Speed", is(row.images_per_s) ? `${count(row.images_per_s)} images/s` : "–"]] : []),
      ...(row.state === "finished" && row.worked_s ? [["Took", duration(row.worked_s)]] : []),
      ["Loss", is(loss) ? `${loss.toFixed(2)} nats` : "–"],
      ["k-NN top-1", is(knn) ? `${knn.toFixed(1)} %` : "–"],
      ...(best && row.state !== "running" && best[0] > knn ? [["Best k-NN", `${best[0].toFixed(1)} % at step ${count(best[1])}`]] : []),
    ];
    const kept = [...figures.children];
    if (kept.length === pairs.length && pairs.every(([label], i) => kept[i].firstChild.textContent === label)) pairs.forEach(([, value], i) => { kept[i].lastChild.textContent = value; });
    else figures.replaceChildren(...pairs.map(([label, value]) => h("div", {}, h("dt", {}, label), h("dd", {}, value))));
  }

  let failureTold = "";
  function drawFailure(row) { // an alert is read once
    const { state, message, step } = row;
    const isBad = state === "failed" || state === "lost";
    const last = main.detail?.checkpoints.at(-1);
    const after = !isBad || !main.detail ? "" : last !== undefined ? `Resume goes on from the checkpoint of step ${count(last)}.` : "It has saved no checkpoint, so Resume begins anew.";
    const where = step === null || step === undefined ? "" : ` at step ${count(step)}`;
    const title = state === "failed" ? `Failed${where}.` : `Ended unexpectedly${where}.`;
    const text = /resum/i.test(message ?? "") ? message : [sentence(message), after].filter(Boolean).join(" ");
    const told = JSON.stringify([isBad, title, text]);
    if (told === failureTold) return;
    failureTold = told;
    failure.replaceChildren(...(isBad ? [note({ title, text })] : []));
  }

  let alarmsTold = "";
  function drawAlarms() {
    const rung = main.curves.marks.filter((mark) => mark.event === "alarm" && mark.message).reverse();
    const skipped = main.curves.marks.filter((mark) => mark.event === "skipped_image" && mark.message).reverse();
    const told = JSON.stringify([main.row.id, rung, skipped.length]);
    if (told === alarmsTold) return;
    alarmsTold = told;
    const warn = ({ step, message }) => h("div", { class: "note warn" }, h("b", {}, `Step ${count(step)}`), " ", message);
    const fold = (words, all) => h("details", { class: "earlier" }, h("summary", {}, words), all);
    alarms.replaceChildren(...rung.slice(0, ALARMS).map(warn),
      ...(rung.length > ALARMS ? [fold(`${count(rung.length - ALARMS)} earlier`, rung.slice(ALARMS).map(warn))] : []),
      ...(skipped.length ? [fold(`${count(skipped.length)} ${skipped.length === 1 ? "picture" : "pictures"} could not be read`, skipped.map(({ message }) => h("p", { class: "meta" }, message)))] : []));
  }

  function drawHead() {
    const { row } = main;
    if (saveAsked && (savesOf(main).length > saveAsked.saves || row.state !== "running" || row.stopping || performance.now() - saveAsked.at_ms > SAVING_MS)) {
      justSaved = savesOf(main).length > saveAsked.saves;
      saveAsked = null;
    }
    if (problem && problem.stood !== standing(row)) problem = null;
    stopSeen_ms = row.stopping && isLive(row) ? stopSeen_ms ?? performance.now() : null;
    name.textContent = row.id;
    if (renaming.hidden) rename.hidden = isLive(row);
    else if (isLive(row)) edit(false);
    pill.className = `pill ${TINTS[row.state]}`;
    pill.replaceChildren(h("i", { class: "dot" }), row.stopping && isLive(row) ? "Stopping" : WORDS[row.state]);
    about.textContent = [row.data, row.preset ? `preset ${row.preset}` : "", row.processes > 1 ? `${row.processes} processes` : "", row.started_s ? `started ${clock(row.started_s)}` : ""].filter(Boolean).join(" · ");
    bar.show(row.step ?? 0, row.steps || (isLive(row) ? null : 1));
    drawFigures(row);
    drawButtons(row);
    const words = statusWords(row);
    if (status.textContent !== words) status.textContent = words;
    status.hidden = !words && !isLive(row); // of one that goes on its place is kept
    const told = problem ?? main.problem;
    if (trouble.dataset.told !== JSON.stringify(told ?? null)) {
      trouble.dataset.told = JSON.stringify(told ?? null);
      (renaming.hidden ? status : titles).after(trouble); // beside what has caused it
      trouble.replaceChildren(...(told ? [note(told)] : []));
    }
    drawFailure(row);
    drawAlarms();
  }

  // ---- the rest
  const stepsOf = (track) => rising(track.detail?.snapshots ?? []);
  function lookAt(step) {
    const all = stepsOf(main);
    wished = step === all.at(-1) ? null : step;
    drawSnapshots();
    if (node.offsetParent !== null) writeLink({ step: wished });
  }
  function drawSnapshots() {
    const all = stepsOf(main);
    const step = all.includes(wished) ? wished : all.at(-1) ?? null;
    film.show(main.snapshots, all, step);
    crops.show(main.snapshots, step);
    const { detail } = main;
    const batch = detail?.batch_size ?? 1;
    const before = main.curves.last("steps", "memory_written"); // as it was before that step wrote
    turning.show(main.snapshots, all, step, { total: detail?.slots ?? 0, batch, step: before?.step ?? 0, written: before ? before.value + batch : 0 });
  }
  function draw() {
    drawHead();
    charts.show([main, ...others].map((track) => ({ name: track.row.id, curves: track.curves, detail: track.detail, steps: track.row.steps ?? track.detail?.config.steps ?? null })));
    drawSnapshots();
    if (main.detail) command.text = main.detail.command;
  }

  function same(track, row) { // the track of a run, which may have changed
    if (track?.row.id !== row.id) return trackOf(row);
    if (track.row.rev !== row.rev) track.isDue = true;
    track.row = row;
    return track;
  }

  const view = {
    node,
    // run: a row of api/runs; rows: those that are compared with it, missing: as before
    show(run, rows = others.map((track) => track.row)) {
      const isOther = main?.row.id !== run.id;
      main = same(main, run);
      others = rows.filter((row) => row.id !== run.id).slice(0, MOST_RUNS - 1).map((row) => same(others.find((track) => track.row.id === row.id), row));
      if (isOther) {
        wished = linked?.run === run.id && Number.isInteger(linked.step) ? linked.step : null;
        linked = null;
        problem = saveAsked = stopSeen_ms = null;
        justSaved = false;
        edit(false);
        command.text = "";
        if (ask.isOpen) ask.close();
        if (wished === null && node.offsetParent !== null) writeLink({ step: null });
      }
      isOff = false;
      draw();
      look();
    },
    compare(rows) { if (main) view.show(main.row, rows); },
    stop() {
      isOff = true;
      clearTimeout(timer);
      turning.halt();
    },
  };
  return view;
}
