// Jobs: a chip in the header, and the list behind it. Asked for once a second while one is running and the page is seen.

import { get, post } from "./ask.js";
import { dialog, progressBar } from "./dialog.js";
import { count, duration, h } from "./dom.js";
import { opening, openModel } from "./opening.js";
import { session } from "./session.js";

const LOOK_MS = 1000;
const LIVE = ["waiting", "running"];
export const WORDS = { waiting: "Waiting", running: "Running", stopped: "Stopped", finished: "Finished", failed: "Failed", lost: "Ended unexpectedly" };
export const TINTS = { waiting: "", running: "ok", stopped: "", finished: "ok", failed: "danger", lost: "danger" };
const IN_BYTES = ["fetch", "publish"]; // whose words tell how far they are
const MINE = "memssl-jobs"; // of this tab: what they make is opened when they end

export const isLive = (job) => LIVE.includes(job.state);

function mine() {
  try { return JSON.parse(sessionStorage.getItem(MINE)) ?? []; } catch { return []; }
}
function keepMine(ids) {
  try { sessionStorage.setItem(MINE, JSON.stringify(ids)); } catch { /* a browser that keeps nothing */ }
}

export function jobsChip() {
  let jobs = [];
  let skew_s = 0; // the server's clock less ours
  let timer;
  const rows = new Map();

  const chip = h("button", { type: "button", class: "chip jobs", "aria-haspopup": "dialog", hidden: true, onclick: show });
  const list = h("ul", { class: "joblist" });
  const clear = h("button", { type: "button", class: "btn quiet", onclick: forgetEnded }, "Clear ended");
  const box = dialog("jobs", "Jobs", h("div", { class: "cardbody" }, list, clear));

  async function look() {
    clearTimeout(timer);
    if (document.hidden || session.facts.public) return;
    const answer = await get(`api/jobs?known=${jobs.map((job) => job.rev).join(",")}`);
    if (answer && !answer.error) {
      const old = new Map(jobs.map((job) => [job.id, job]));
      skew_s = answer.now_s - Date.now() / 1000;
      jobs = answer.jobs.map((job) => (job.state ? { ...job, first: firstSeen(old.get(job.id), job) } : old.get(job.id)));
      draw();
      settle();
    }
    clearTimeout(timer);
    if (jobs.some(isLive)) timer = setTimeout(look, LOOK_MS);
  }
  document.addEventListener("visibilitychange", look);

  // where the progress of a job was first seen: what is left is told from there on
  function firstSeen(old, job) {
    if (old?.first) return old.first;
    return job.state === "running" && job.step ? { step: job.step, at_s: job.told_s } : null;
  }

  // jobs this tab has started: open what they have made, or say why there is nothing
  function settle() {
    const waiting = mine();
    for (const job of jobs.filter((one) => waiting.includes(one.id) && !isLive(one))) {
      keepMine(waiting.filter((id) => id !== job.id));
      if (job.opens) openModel(job.opens, { title: job.title });
      else if (job.state === "failed" || job.state === "lost") {
        opening.fail({ source: null, title: `${job.title}: ${WORDS[job.state].toLowerCase()}.`, text: job.message || "Its log in the list of jobs says more." });
      }
    }
  }

  function left(job) {
    if (job.state !== "running" || !job.total || !job.first) return "";
    const [steps, time] = [job.step - job.first.step, job.told_s - job.first.at_s];
    return steps > 0 && time > 0.5 ? `about ${duration(((job.total - job.step) * time) / steps)} left` : "";
  }

  function meta(job) {
    const until = isLive(job) ? Date.now() / 1000 + skew_s : job.told_s;
    const far = IN_BYTES.includes(job.kind) || job.step === null || !job.total ? "" : `${count(job.step)} of ${count(job.total)}`;
    return [isLive(job) ? job.words || "getting ready" : "", far, duration(until - job.started_s), left(job)].filter(Boolean).join(" · ");
  }

  function makeRow(id) {
    const part = {
      title: h("b"), pill: h("span", { class: "pill" }), meta: h("span", { class: "meta" }), message: h("p", { class: "meta" }),
      bar: progressBar("Progress"), log: h("pre", { tabindex: "0", "aria-label": "End of the log" }),
      stop: h("button", { type: "button", class: "btn small danger", onclick: () => post(`api/jobs/${id}/stop`).then(look) }, "Stop"),
      open: h("button", { type: "button", class: "btn small", onclick: () => { box.close(); openModel(jobs.find((job) => job.id === id).opens); } }, "Open the model"),
      link: h("a", { class: "btn small", target: "_blank", rel: "noreferrer" }, "See it on the Hub"),
    };
    const readLog = async () => { if (fold.open) part.log.textContent = (await get(`api/jobs/${id}/log`))?.text || "Nothing yet."; };
    const fold = h("details", { class: "logfold", ontoggle: readLog }, h("summary", {}, "Log"), part.log);
    const node = h("li", { class: "job" }, h("div", { class: "line spread" }, part.title, part.pill), part.bar.node,
      h("div", { class: "line spread" }, part.meta, h("div", { class: "line" }, part.open, part.link, part.stop)), part.message, fold);
    return { node, part, readLog };
  }

  function fill({ part, readLog }, job) {
    part.title.textContent = job.title;
    part.pill.textContent = job.stopping ? "Stopping" : WORDS[job.state];
    part.pill.className = `pill ${TINTS[job.state]}`;
    part.meta.textContent = meta(job);
    part.message.textContent = job.state === "finished" ? "" : job.message;
    part.message.hidden = !part.message.textContent;
    part.bar.node.hidden = !isLive(job);
    part.bar.show(job.step ?? 0, job.state === "running" ? job.total : null);
    part.stop.hidden = !isLive(job);
    part.stop.disabled = job.stopping;
    part.open.hidden = !job.opens;
    part.link.hidden = !job.link;
    if (job.link) part.link.href = job.link;
    readLog();
  }

  function draw() {
    const live = jobs.filter(isLive).length;
    chip.hidden = !jobs.length;
    chip.replaceChildren(...(live ? [h("i", { class: "dot" })] : []),
      h("span", {}, live ? `${live} job${live > 1 ? "s" : ""}` : `${jobs.length} job${jobs.length > 1 ? "s" : ""}`),
      h("span", { class: "hide-s" }, live ? "running" : "ended"));
    for (const id of rows.keys()) if (!jobs.some((job) => job.id === id)) rows.delete(id);
    const nodes = jobs.map((job) => {
      if (!rows.has(job.id)) rows.set(job.id, makeRow(job.id));
      const row = rows.get(job.id);
      if (row.rev !== job.rev) fill(row, job);
      row.rev = job.rev;
      return row.node;
    });
    if (nodes.length !== list.children.length || nodes.some((node, i) => node !== list.children[i])) list.replaceChildren(...nodes);
    clear.hidden = live === jobs.length;
    if (!jobs.length && box.isOpen) box.close();
  }
  setInterval(() => { // times go on between two looks
    if (box.isOpen) for (const job of jobs.filter(isLive)) rows.get(job.id).part.meta.textContent = meta(job);
  }, 1000);

  async function forgetEnded() {
    for (const job of jobs.filter((one) => !isLive(one))) await post(`api/jobs/${job.id}/forget`);
    look();
  }

  function show() {
    box.show();
    look();
  }

  let isStarted = false;
  session.hear(() => {
    if (isStarted || session.facts.state === "starting") return;
    isStarted = true;
    look();
  });
  return {
    chip,
    node: box.node,
    look,
    // a job that this tab has just started
    started(id) {
      keepMine([...mine(), id]);
      look();
    },
  };
}
