// Galleries: pictures of one's own, embedded once. Which there are, how one stands, and the jobs that make them.

import { get, post } from "./ask.js";
import { dialog, progressBar } from "./dialog.js";
import { bytes, commandLine, count, duration, h, note, rested } from "./dom.js";
import { isLive } from "./jobs.js";
import { doors, session } from "./session.js";
import { sources } from "./sources.js";

const [LOOK_MS, REST_MS, FRESH_MS] = [1000, 400, 30_000]; // between two looks at a job; after the last keystroke; a list is up to date
const LOST = { title: "The pictures did not arrive.", text: "The upload was interrupted or refused. Try again." };
const TITLES = { make: "Make a gallery", update: "Update", again: "Embed again" };

const some = (n, noun) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;

// How long ago, in words
function ago(then_s) {
  const s = Date.now() / 1000 - then_s;
  if (s < 90) return "just now";
  return s < 86_400 ? `${duration(s)} ago` : new Date(1000 * then_s).toLocaleDateString("en-GB", { day: "numeric", month: "short", year: "numeric" });
}

// What an update would do: "37 new · 2 moved · 1 gone"
function changes(need) {
  const parts = [["new", need.new], ["moved", need.moved], ["gone", need.gone - need.moved]].filter(([, n]) => n).map(([what, n]) => `${count(n)} ${what}`);
  return parts.join(" · ") || "nothing new";
}

// `chosen(name)`: a gallery was picked here; `deleted(name)`; `changed`: the list, or what stands in one, is another
export function galleries({ upload, chosen, deleted, changed }) {
  let list = [];
  let live = {}; // name -> id of the job that makes it
  let problems = {}; // name -> why the last job of it left nothing
  let told = null; // handle of the model that the list was told for
  let [asks, askedAt] = [null, 0]; // the last time that it was asked for
  let failed = null; // why the list is not up to date
  let turn = 0;
  const jobs = new Map(); // id -> what was last heard of it
  const ended = new Map(); // name -> {title, text}: why a job of it left nothing
  const known = (name) => list.find((one) => one.name === name) ?? null;

  // ---- asking
  async function refresh() {
    const mine = ++turn;
    const handle = session.facts.model?.handle ?? "";
    [asks, askedAt] = [handle, performance.now()];
    const answer = await get(`api/galleries?model=${encodeURIComponent(handle)}`);
    if (mine !== turn) return;
    told = handle; // also of a server that does not answer: it is asked again after a while
    failed = answer?.error ?? null;
    if (answer && !failed) {
      list = answer.galleries;
      live = answer.live ?? {};
      problems = answer.problems ?? {};
      look();
    }
    draw();
    changed();
  }

  let timer;
  async function look() { // at the jobs under way
    clearTimeout(timer);
    if (!Object.keys(live).length) return;
    timer = setTimeout(look, LOOK_MS); // whatever comes of this look
    if (document.hidden) return;
    const answer = await get("api/jobs");
    if (!answer || answer.error) return;
    let isOver = false;
    for (const [name, id] of Object.entries(live)) {
      const job = answer.jobs.find((one) => one.id === id);
      if (job) jobs.set(id, job);
      if (job && isLive(job)) continue;
      delete live[name];
      isOver = true;
    }
    if (isOver) {
      clearTimeout(timer);
      doors.jobs?.();
      await refresh();
    } else drawStatus();
  }
  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });

  function started(name, id) {
    live[name] = id;
    ended.delete(name);
    needed.delete(name);
    doors.jobs?.();
    draw();
    look();
    changed();
  }
  const stop = (name) => post(`api/jobs/${encodeURIComponent(live[name])}/stop`).then(look);

  // ---- the line that says how the chosen one stands
  let shown = null; // its name
  const needed = new Map(); // name -> what an update would take
  const part = {
    line: h("span", { class: "meta", role: "status" }),
    skipped: h("button", { type: "button", class: "btn quiet small", "aria-expanded": "false", onclick: () => showSkipped() }),
    look: h("button", { type: "button", class: "btn quiet small", onclick: () => lookForChanges() }, "Look for changes"),
    update: h("button", { type: "button", class: "btn small", onclick: () => start({ name: shown, how: "update" }) }, "Update"),
    stop: h("button", { type: "button", class: "btn small danger", onclick: () => { part.stop.disabled = true; stop(shown); } }, "Stop"),
    bar: progressBar("Embedding"),
    list: h("div", { class: "skipped tablebox", hidden: true, tabindex: "0", role: "region", "aria-label": "Skipped files" }),
    problem: h("div", { class: "slot", "aria-live": "polite" }),
  };
  const status = h("div", { class: "gstatus" }, h("div", { class: "line" }, part.line, part.skipped, part.look, part.update, part.stop), part.bar.node, part.problem, part.list);

  function words(one) {
    const need = needed.get(one.name);
    return [some(one.pictures, "picture"), need ? changes(need) : "", one.data, one.model ? `with model ${one.model}` : "", one.updated_s ? `updated ${ago(one.updated_s)}` : "", one.index ? `index, recall@10 ${one.index.recall.toFixed(2)} measured` : "", one.bytes ? bytes(one.bytes) : ""].filter(Boolean).join(" · ");
  }
  function drawStatus() {
    const one = known(shown);
    const job = live[shown] ? jobs.get(live[shown]) : null;
    const isOurs = !session.facts.public;
    status.hidden = !shown;
    if (!shown) return;
    const far = job?.step && job.total ? `${count(job.step)} of ${count(job.total)}` : "";
    part.line.textContent = live[shown] ? [one?.pictures ? some(one.pictures, "picture") : "", job?.stopping ? "stopping" : job?.words || "starting", far].filter(Boolean).join(" · ") : one ? words(one) : "";
    part.skipped.hidden = !one?.skipped || !isOurs || Boolean(live[shown]);
    part.skipped.textContent = one?.skipped ? `${count(one.skipped)} skipped` : "";
    part.look.hidden = !isOurs || !one?.pictures || !one.fits || Boolean(live[shown]) || needed.has(shown);
    const need = needed.get(shown);
    part.update.hidden = !need || Boolean(live[shown]) || !(need.new || need.moved || need.gone) || need.problems.length > 0;
    part.update.textContent = need?.seconds ? `Update, about ${duration(need.seconds)}` : "Update";
    part.stop.hidden = !live[shown];
    part.stop.disabled = Boolean(job?.stopping);
    part.bar.node.classList.toggle("none", !live[shown]);
    part.bar.show(job?.step ?? 0, job?.state === "running" ? job.total : null);
    const why = ended.get(shown) ?? (problems[shown] && !live[shown] ? { title: `The last update of gallery ${shown} was not finished.`, text: problems[shown] } : need?.problems.length ? { title: "It cannot be updated now.", text: need.problems.join(" ") } : null);
    if (part.problem.dataset.why !== JSON.stringify(why)) part.problem.replaceChildren(...(why ? [note(why)] : []));
    part.problem.dataset.why = JSON.stringify(why);
  }
  async function lookForChanges() {
    const name = shown;
    part.look.disabled = true;
    part.look.textContent = "Looking…";
    const need = await post("api/galleries/need", { name, data: null, model: session.facts.model.handle, again: false });
    part.look.disabled = false;
    part.look.textContent = "Look for changes";
    if (need.error) ended.set(name, need.error);
    else {
      ended.delete(name);
      needed.set(name, need);
    }
    drawStatus();
    if (name === shown && document.activeElement === document.body) (part.update.hidden ? part.skipped : part.update).focus();
  }
  async function showSkipped(isOpen = part.list.hidden) {
    const name = shown;
    part.list.hidden = !isOpen;
    part.skipped.setAttribute("aria-expanded", String(isOpen));
    if (!isOpen) return;
    part.list.replaceChildren(h("p", { class: "meta" }, "Reading the list…"));
    const answer = await get(`api/galleries/${encodeURIComponent(name)}/skipped`);
    if (name !== shown) return;
    if (answer.error) { part.list.replaceChildren(note(answer.error)); return; }
    const more = answer.count > answer.skipped.length ? `; the first ${answer.skipped.length} are listed` : "";
    part.list.replaceChildren(h("table", { class: "tbl" },
      h("caption", { class: "meta" }, `${some(answer.count, "file")} of ${name} could not be read${more}`),
      h("thead", {}, h("tr", {}, ["File", "Reason"].map((head) => h("th", { scope: "col" }, head)))),
      h("tbody", {}, answer.skipped.map((one) => h("tr", {}, h("td", { class: "mono" }, one.path), h("td", {}, one.reason))))));
  }

  // ---- the dialog: the list, or the form of one
  let form = null; // {how, name}: what the form is for
  const rows = h("ul", { class: "galleries" });
  const fresh = h("button", { type: "button", class: "btn pri", onclick: () => showForm({ how: "make" }) }, "Make a gallery");
  const trouble = h("div", { class: "slot", "aria-live": "polite" });
  const shelf = h("div", { class: "cardbody" }, rows, trouble, h("div", { class: "line" }, fresh));

  const from = sources({ kinds: ["folder", "zip", "uploads", "drawn"], left: leave, chosen: ask, typed: () => { leave(); rest(); }, failed: fail, drawn: 1000 });
  const rest = rested(REST_MS, ask);
  const about = h("p");
  const choice = h("div", { class: "choice" }, from.nodes);
  const name = h("input", { type: "text", maxlength: "80", autocomplete: "off", spellcheck: "false", oninput: () => { name.dataset.own = name.value ? "yes" : ""; leave(); rest(); } });
  const field = h("label", { class: "fld" }, h("span", { class: "lab" }, "Name of the gallery"), name);
  const command = commandLine();
  const needs = h("dl", { class: "facts need" });
  const problem = h("div", { class: "slot", "aria-live": "polite" });
  const busy = h("span", { class: "meta", role: "status" });
  const go = h("button", { type: "submit", class: "btn pri" });
  const back = h("button", { type: "button", class: "btn", onclick: () => showShelf() }, "Back");
  const asking = h("form", { class: "cardbody", novalidate: true, onsubmit: (event) => { event.preventDefault(); submit(); } },
    about, choice, field, needs, command.node, problem, h("div", { class: "line spread" }, busy, h("div", { class: "line" }, back, go)));
  const box = dialog("galleries", "Galleries", h("div", {}, shelf, asking), { onclose: () => { asked++; form = null; } });

  function pill(one) {
    if (live[one.name]) return h("span", { class: "pill ok" }, "Being made");
    if (!one.fits) return h("span", { class: "pill warn" }, "Another model");
    return null;
  }
  function row(one) {
    const confirm = h("div", { class: "line confirm", hidden: true }, h("span", {}, `Delete gallery ${one.name}? The pictures themselves stay where they are.`),
      h("div", { class: "line" }, h("button", { type: "button", class: "btn small danger", onclick: () => remove(one.name) }, "Delete it"),
        h("button", { type: "button", class: "btn small", onclick: () => { confirm.hidden = true; acts.hidden = false; erase.focus(); } }, "Keep it")));
    const erase = h("button", { type: "button", class: "btn small", disabled: Boolean(live[one.name]), "aria-label": `Delete gallery ${one.name}`, onclick: () => { confirm.hidden = false; acts.hidden = true; confirm.querySelector("button").focus(); } }, "Delete");
    const verb = (words, how) => h("button", { type: "button", class: "btn small", disabled: Boolean(live[one.name]), "aria-label": `${words} gallery ${one.name}`, onclick: () => showForm({ how, name: one.name }) }, words);
    const acts = h("div", { class: "line" },
      h("button", { type: "button", class: "btn small", "aria-label": `Search in gallery ${one.name}`, onclick: () => { box.close(); chosen(one.name); } }, "Search in it"),
      ...(session.facts.public ? [] : [one.fits ? verb("Update", "update") : verb("Embed again", "again"), erase]));
    return h("li", {}, h("div", { class: "line spread" }, h("b", {}, one.name), pill(one)), h("span", { class: "meta" }, [words(one), one.skipped ? `${count(one.skipped)} skipped` : ""].filter(Boolean).join(" · ")), acts, confirm);
  }
  function drawShelf() {
    const stamp = JSON.stringify([list, live]);
    if (rows.dataset.stamp === stamp) return;
    rows.dataset.stamp = stamp;
    rows.replaceChildren(...(list.length ? list.map(row) : [h("li", { class: "meta" }, "There is no gallery yet. One holds the pictures of a folder, each embedded once, to be searched in a moment.")]));
  }
  async function remove(which) {
    const answer = await post(`api/galleries/${encodeURIComponent(which)}/delete`);
    trouble.replaceChildren(...(answer.error ? [note(answer.error)] : []));
    if (!answer.error) {
      needed.delete(which);
      deleted(which);
    }
    await refresh();
    fresh.focus();
  }

  function showShelf() {
    form = null;
    asked++;
    box.title = "Galleries";
    trouble.replaceChildren();
    [shelf.hidden, asking.hidden] = [false, true];
    fresh.hidden = Boolean(session.facts.public);
    drawShelf();
    if (box.isOpen) fresh.focus();
  }

  // ---- the form
  let asked = 0; // of the wish on screen
  let need = null; // what the server said of it
  let isBusy = false;
  let sent = {}; // {of: the files, uploads: where they went}
  function showForm(what) {
    form = what;
    const model = session.facts.model.name;
    const title = what.how === "make" ? TITLES.make : `${TITLES[what.how]}: ${what.name}`;
    box.title = title;
    go.textContent = { make: "Make the gallery", update: "Update", again: "Embed again" }[what.how];
    about.textContent = what.how === "make" ? `${model} embeds each picture once and keeps a small copy of it; the pictures themselves stay where they are.`
      : what.how === "update" ? "Only what is new or changed is embedded; what has been deleted is forgotten."
        : `${what.name} was embedded by ${known(what.name)?.model || "another model"}. ${model} embeds all its pictures anew; until that is done, the old ones stay.`;
    [shelf.hidden, asking.hidden] = [true, false];
    choice.hidden = field.hidden = what.how !== "make";
    name.value = what.name ?? "";
    name.dataset.own = what.name ? "yes" : "";
    fail(null);
    leave();
    if (what.how === "make") from.show(session.facts);
    else ask();
    if (box.isOpen) (what.how === "make" ? choice.querySelector("button") : back)?.focus();
  }
  // what is asked for; uploads are sent once, as the server looks at them before it says what they take
  async function wish() {
    const asks = { name: form.how !== "make" || name.dataset.own ? name.value.trim() : "", data: form.how === "make" ? from.data() : null, model: session.facts.model.handle, again: form.how === "again" };
    const { files } = from;
    if (asks.data && files.length) {
      if (sent.of !== files) sent = { of: files, uploads: await from.send(upload, (words) => { busy.textContent = words; }) };
      asks.data.uploads = sent.uploads;
    }
    return asks;
  }

  function leave() {
    asked++;
    need = null;
    busy.textContent = "";
    showNeed();
  }
  async function ask() {
    if (!form || (form.how === "make" && !from.isTold)) return;
    leave();
    const mine = asked;
    fail(null);
    busy.textContent = "Looking at the pictures…";
    let answer;
    try {
      const asks = await wish();
      if (mine !== asked) return;
      busy.textContent = "Looking at the pictures…";
      const taken = form.how === "make" && known(asks.name);
      answer = taken ? { error: { title: "There is a gallery of this name already.", text: "Choose another name, or update that one." } } : await post("api/galleries/need", asks);
    } catch {
      answer = { error: LOST };
    }
    if (mine !== asked) return;
    busy.textContent = "";
    if (answer.error) { fail(answer.error); return; }
    need = answer;
    name.value = need.name;
    command.text = need.command;
    if (need.problems.length) fail({ title: "This cannot be done here.", text: need.problems.join(" ") });
    showNeed();
  }
  function showNeed() {
    const free = (what) => `about ${bytes(need[`${what}_bytes`])}, ${bytes(need[`${what}_free_bytes`])} free`;
    const values = need ? [count(need.pictures), [count(need.new + need.moved), need.moved ? `of which ${count(need.moved)} have most likely only moved` : "", need.skipped ? `${count(need.skipped)} will be skipped` : ""].filter(Boolean).join(", "),
      need.seconds ? `about ${duration(need.seconds)} once it has started` : "a moment", free("ram"), free("disk")] : Array(5).fill("–");
    if (need?.gone > need?.moved) values[0] += `, ${count(need.gone - need.moved)} gone since`;
    needs.replaceChildren(...["Pictures found", "To embed", "Time", "Main memory", "Disk"].flatMap((what, i) => [h("dt", {}, what), h("dd", {}, values[i])]));
    command.node.hidden = !need?.command;
    showButton();
  }
  function showButton() {
    go.disabled = isBusy || !need || need.problems.length > 0;
  }
  function fail(error) {
    problem.replaceChildren(...(error ? [note(error)] : []));
    if (error) busy.textContent = "";
  }

  async function submit() {
    if (go.disabled) return;
    isBusy = true;
    showButton();
    fail(null);
    try {
      const answer = await post("api/galleries/update", { ...await wish(), name: need.name });
      if (answer.error) { fail(answer.error); return; }
      started(answer.name, answer.job);
      from.clearFiles();
      box.close();
      chosen(answer.name);
    } catch {
      fail(LOST);
    } finally {
      isBusy = false;
      busy.textContent = "";
      showButton();
    }
  }
  async function start({ name: which, how }) { // without the form
    const answer = await post("api/galleries/update", { name: which, data: null, model: session.facts.model.handle, again: how === "again" });
    if (answer.error) { ended.set(which, answer.error); drawStatus(); } else started(which, answer.job);
  }

  function draw() {
    drawStatus();
    if (box.isOpen && !form) drawShelf();
  }

  return {
    node: box.node,
    status,
    get list() { return list; },
    get isTold() { return told !== null && told === session.facts.model?.handle; },
    get wasTold() { return told !== null; },
    get isFresh() { return asks === session.facts.model?.handle && performance.now() - askedAt < FRESH_MS; },
    get failed() { return failed; },
    known,
    isLive: (which) => Boolean(live[which]),
    refresh,
    // the status line is about this one, or hidden
    show(which) {
      if (which !== shown) showSkipped(false);
      shown = which;
      drawStatus();
    },
    open(what = null) {
      rows.dataset.stamp = "";
      if (what) showForm(what);
      else showShelf();
      box.show();
    },
  };
}
