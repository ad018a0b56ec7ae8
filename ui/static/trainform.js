// A new run: pictures, preset and knobs, and what the run would take before it is started.

import { get, post } from "./ask.js";
import { bytes, commandLine, count, duration, h, icon, note } from "./dom.js";
import { isLive } from "./jobs.js";
import { sources } from "./sources.js";

const REST_MS = 400; // after the last keystroke
const LOOK_MS = 1000; // between two looks at the measuring
const FIGURES = {
  images: "Pictures", classes: "Classes", steps: "Steps", turns: "The memory turns over", place: "Runs on", disk: "Disk",
  speed: "Speed", time: "Time", memory: "Memory",
};
const MEASURED = ["speed", "time", "memory"];

const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const decimals = (x) => (x < 0.1 ? x.toFixed(2) : x < 10 ? x.toFixed(1) : count(x));
const written = (value) => (value === null ? "automatic" : value === true ? "on" : value === false ? "off" : String(value));

// One setting: its label, control, reason, and place for what is wrong with it
function setting({ name, label, why, kind, choices = [], optional = false }, changed) {
  const id = `set-${name}`;
  const reason = h("span", { class: "meta", id: `${id}-why` }, why ?? "");
  const mark = h("span", { class: "meta", id: `${id}-preset` });
  const slot = h("div", { class: "slot" });
  const common = { id, "aria-describedby": `${reason.id} ${mark.id}` };
  const offered = choices.map(([value]) => value);
  let own = null; // the preset's value
  let input;
  if (kind === "choice") input = h("select", { ...common, onchange: told }, choices.map(([value, words]) => h("option", { value: String(value) }, words)));
  else if (kind === "switch") input = h("input", { ...common, type: "checkbox", role: "switch", onchange: told });
  else input = h("input", { ...common, type: "number", step: "any", oninput: told, onchange: () => { if (input.value === "" && !optional && !input.validity.badInput) put(own); } });
  const head = kind === "switch" ? h("div", { class: "line spread" }, h("label", { class: "sw" }, input, label), mark) : h("div", { class: "lab" }, h("label", { for: id }, label), mark);
  const node = h("div", { class: "fld" }, head, ...(kind === "switch" ? [] : [input]), reason, slot);

  function put(value) {
    if (kind === "switch") input.checked = value;
    else {
      if (kind === "choice" && !offered.includes(value)) { // of a run that was started elsewhere
        offered.push(value);
        input.append(h("option", { value: String(value) }, written(value)));
      }
      input.value = value === null ? "" : String(value);
    }
    show();
  }
  function read() {
    if (kind === "switch") return input.checked;
    if (kind === "choice") return offered.find((value) => String(value) === input.value) ?? own;
    if (input.value !== "") return Number(input.value);
    return optional ? null : own;
  }
  function show() {
    mark.textContent = read() === own ? "" : `preset: ${written(own)}`;
  }
  function told() {
    show();
    changed();
  }
  return {
    node, input, slot,
    get value() { return read(); },
    get isWrong() { return input.validity.badInput; },
    // the preset's value, and the one to show
    set(preset, value = preset) {
      own = preset;
      if (kind === "number") input.placeholder = written(optional ? null : preset);
      put(value);
    },
  };
}

export function trainForm({ started, closed, liveRuns }) {
  let offer = null; // what the server offers
  let preset = null; // of these
  let plan = null; // what it said of the wish on screen
  let measuring = null; // {job, since}
  let measured = null;
  let turn = 0; // of the wish on screen
  let isBusy = false; // a start is under way
  let extra = {}; // changes of a copied run that have no control here
  const settings = new Map(); // by field

  // ---- what stands where
  const from = sources({ kinds: ["folder", "drawn", "hub"], drawn: 20000, left: leave, chosen: ask, typed: rest, failed: (error) => fail({ error, field: "data" }) });
  const slots = { data: h("div", { class: "slot", "aria-live": "polite" }), name: h("div", { class: "slot", "aria-live": "polite" }), all: h("div", { class: "slot", "aria-live": "polite" }) };
  const told = h("div", { class: "slot" }); // the plan's problems and advice
  const lead = h("p", { class: "meta" });
  const presets = h("div", { class: "presets", role: "radiogroup", "aria-label": "Preset" });
  const knobs = h("div", { class: "knobs" });
  const others = h("div", { class: "knobs" });
  const fold = h("details", { class: "fold" }, h("summary", {}, "All other settings"), others);
  const name = h("input", { type: "text", maxlength: "80", autocomplete: "off", spellcheck: "false", oninput: () => { name.dataset.own = name.value ? "yes" : ""; rest(); } });
  const figures = Object.fromEntries(Object.keys(FIGURES).map((one) => [one, h("dd", {}, "–")]));
  const lines = (names) => h("dl", { class: "facts need" }, names.map((one) => [h("dt", {}, FIGURES[one]), figures[one]]));
  const sizes = lines(Object.keys(FIGURES).filter((one) => !MEASURED.includes(one)));
  const go = h("button", { type: "button", class: "btn pri", onclick: () => (measuring || measured ? start() : measure()) });
  const words = h("span", { class: "meta", role: "status" });
  const cancel = h("button", { type: "button", class: "btn quiet", onclick: () => { stopMeasuring(); showPlan(); go.focus(); } }, "Cancel");
  const terms = h("p", { class: "meta terms" });
  const command = commandLine();
  const title = h("h2", { tabindex: "-1" }, "New run");
  const step = (number, heading, ...parts) => h("section", { class: "step", "aria-label": heading }, h("h3", {}, h("span", { class: "meta" }, number), heading), ...parts);
  const parts = h("div", { class: "formgrid" },
    h("div", { class: "asked" }, step("1", "Pictures", ...from.nodes, slots.data), step("2", "Settings", presets, knobs, fold)),
    step("3", "Plan", h("label", { class: "fld" }, h("span", { class: "lab" }, "Name"), name), slots.name,
      sizes, lines(MEASURED), h("div", { class: "line starter" }, go, cancel, words), terms, slots.all, told));
  const missing = h("div", { class: "slot" });
  const node = h("form", { class: "trainform", novalidate: true, onsubmit: (event) => event.preventDefault() },
    h("div", { class: "head" }, title, h("button", { type: "button", class: "btn quiet icon", "aria-label": "Close the form", onclick: closed }, icon("close"))),
    lead, missing, parts, command.node);

  // ---- what is offered
  async function load() {
    const answer = await get("api/train");
    missing.replaceChildren(...(answer.error ? [note(answer.error)] : []));
    if (answer.error) return false;
    offer = answer;
    presets.replaceChildren(...offer.presets.map((one) => h("label", { class: "preset" },
      h("input", { type: "radio", name: "preset", value: one.name, onchange: () => { usePreset(one); lead.textContent = ""; ask(); } }), h("b", {}, one.title), h("span", { class: "meta" }, one.words))));
    settings.clear();
    const made = (one) => {
      settings.set(one.name, setting(one, rest));
      return settings.get(one.name).node;
    };
    const places = [];
    if (offer.devices.length > 1) places.push({ name: "device", label: "Device", kind: "choice", choices: offer.devices.map(({ value, label }) => [value, label]) });
    if (offer.processes.length > 1) places.push({ name: "processes", label: "GPUs", why: "A process each. They share the batch.", kind: "choice", choices: offer.processes.map((n) => [n, String(n)]) });
    const known = places.map((one) => one.name);
    const unplaced = (all) => all.filter((one) => !known.includes(one.name));
    knobs.replaceChildren(...[...places, ...unplaced(offer.knobs)].map(made));
    others.replaceChildren(...unplaced(offer.folded).map(made));
    return true;
  }
  function usePreset(one, config = one.config, processes = 1) {
    preset = one;
    extra = {};
    for (const input of presets.querySelectorAll("input")) input.checked = input.value === one.name;
    for (const [field, it] of settings) it.set(...(field === "processes" ? [1, processes] : [one.config[field], config[field]]));
  }

  function wish() {
    const changes = { ...extra };
    let processes = 1;
    for (const [field, it] of settings) {
      if (field === "processes") processes = it.value;
      else if (it.value !== preset.config[field]) changes[field] = it.value;
    }
    return { data: from.data(), preset: preset.name, changes, name: name.dataset.own ? name.value.trim() : "", processes };
  }

  // ---- what it takes
  let timer;
  function leave() {
    clearTimeout(timer);
    turn++;
    stopMeasuring();
    plan = measured = null;
    words.textContent = "";
    showPlan(true);
  }
  function nothing() {
    told.replaceChildren();
    command.text = "";
    showPlan();
  }
  function rest() {
    leave();
    timer = setTimeout(ask, REST_MS);
  }

  async function ask() {
    leave();
    clearProblems();
    if (!preset || !from.isTold) return nothing();
    const wrong = [...settings].find(([, it]) => it.isWrong);
    if (wrong) return fail({ error: { text: "This is no number; write one, like 0.5 or 200." }, field: wrong[0] });
    const mine = turn;
    words.textContent = "Looking at the pictures…";
    const answer = await post("api/train/plan", wish());
    if (mine !== turn) return;
    words.textContent = "";
    if (answer.error) return fail(answer);
    ({ plan } = answer);
    if (!name.dataset.own) name.value = answer.name;
    command.text = answer.command;
    told.replaceChildren(...plan.problems.map((text) => note({ title: "This cannot run.", text })), ...(plan.problems.length ? [] : plan.advice.map((text) => h("div", { class: "note warn" }, text))));
    showPlan();
  }

  async function measure() {
    const now = measuring = { job: null, since: performance.now() };
    slots.all.replaceChildren();
    showPlan();
    const answer = await post("api/train/measure", wish());
    now.job = answer.job;
    if (measuring !== now) { if (now.job) post(`api/train/measure/${now.job}/stop`); return; }
    let at = answer;
    while (!at.error && !at.measured && (at === answer || isLive(at))) {
      await wait(LOOK_MS);
      if (measuring !== now) return;
      at = await get(`api/train/measure/${now.job}`);
      if (measuring !== now) return;
    }
    measuring = null;
    measured = at.measured ?? null;
    if (measured) showPlan();
    else fail(at.error ? at : { error: { title: "The measuring has ended early.", text: "Try it again." } });
  }
  function stopMeasuring() {
    if (measuring?.job) post(`api/train/measure/${measuring.job}/stop`);
    measuring = null;
  }
  const elapsed = () => `Measuring a few steps… ${duration((performance.now() - measuring.since) / 1000)}`;
  setInterval(() => { if (measuring && node.offsetParent) words.textContent = elapsed(); }, 500);

  async function start() {
    stopMeasuring();
    isBusy = true;
    showPlan();
    const answer = await post("api/train/start", wish());
    isBusy = false;
    if (answer.error) return fail(answer);
    name.value = name.dataset.own = "";
    leave();
    started(answer.run);
  }

  // ---- telling
  // `isOld`: what was told of the wish before this one stays, dimmed, until the new figures are there
  function showPlan(isOld = false) {
    const planned = {
      images: (it) => (it.images === null ? "not told by the Hub" : count(it.images)),
      classes: (it) => (it.classes ? count(it.classes) : "none named"),
      steps: (it) => `${count(it.steps)}${it.steps_per_epoch ? `, ${decimals(it.steps / it.steps_per_epoch)} epochs` : ""}`,
      turns: (it) => (it.turns === null ? "–" : `${decimals(it.turns)} times`),
      place: (it) => [it.processes > 1 ? `${it.processes} processes` : "", it.device.startsWith("cpu") ? `CPU, ${it.threads} of ${it.cores} cores` : offer.devices.find(({ value }) => value === it.device)?.label ?? it.device].filter(Boolean).join(" · "),
      disk: (it) => `${bytes(it.disk_bytes)} of ${bytes(it.disk_free_bytes)} free`,
    };
    const felt = {
      speed: (it) => `${decimals(it.images_per_s)} images/s`,
      time: (it) => `about ${duration(it.seconds)}`,
      memory: (it) => `${bytes(it.memory_bytes)} of ${bytes(plan.memory_free_bytes)} free`,
    };
    for (const [one, say] of Object.entries(planned)) if (plan || !isOld) figures[one].textContent = plan ? say(plan) : "–";
    sizes.classList.toggle("old", isOld);
    told.classList.toggle("old", isOld);
    for (const [one, say] of Object.entries(felt)) figures[one].textContent = plan && measured ? say(measured) : "–";
    go.textContent = measuring || measured || isBusy ? "Start training" : "Plan the run";
    go.disabled = isBusy || !plan || plan.problems.length > 0;
    cancel.hidden = !measuring;
    if (measuring) words.textContent = elapsed();
    else if (plan) words.textContent = isBusy ? "Starting…" : measured ? `measured over ${measured.steps} steps` : "";
    if (offer) terms.textContent = [offer.at_once && liveRuns() >= offer.at_once ? "Another run is training: this one waits for its turn." : "", limitWords(offer.limits)].filter(Boolean).join(" ");
  }
  function limitWords(limits) {
    if (!limits) return "";
    const each = [limits.runs ? `${count(limits.runs)} runs` : "", limits.hours ? `${limits.hours} h each` : "", limits.gigabytes ? `${limits.gigabytes} GB` : ""].filter(Boolean);
    return each.length ? `On this server: at most ${each.join(", ")}.` : "";
  }

  function fail({ error, field }) {
    const it = settings.get(field);
    const isBeside = it || field === "name"; // the control, which is the title
    (it?.slot ?? slots[field] ?? slots.all).replaceChildren(isBeside ? h("div", { class: "note", role: "alert" }, error.text) : note(error));
    if (it) {
      it.input.setAttribute("aria-invalid", "true");
      if (fold.contains(it.node)) fold.open = true;
    }
    if (field === "name") name.setAttribute("aria-invalid", "true");
    words.textContent = "";
    if (plan) showPlan();
    else nothing();
  }
  function clearProblems() {
    for (const slot of [...Object.values(slots), ...[...settings.values()].map((it) => it.slot)]) slot.replaceChildren();
    for (const input of [name, ...[...settings.values()].map((it) => it.input)]) input.removeAttribute("aria-invalid");
  }

  // the settings and pictures of another run
  function copy({ run, config, changes, data }) {
    usePreset(offer.presets.find((one) => one.name === run.preset) ?? offer.presets[0], config, run.processes ?? 1);
    extra = Object.fromEntries(Object.entries(changes).filter(([field]) => !settings.has(field)));
    lead.textContent = [`The settings are those of ${run.id}.`, Object.keys(extra).length ? `Not shown below: ${Object.keys(extra).join(", ")}.` : "", data ? "" : "Its pictures are in no folder that is declared here: choose some."].filter(Boolean).join(" ");
    name.value = name.dataset.own = "";
    from.show(offer, data);
  }

  let shows = 0;
  return {
    node,
    hide() { if (measuring) { stopMeasuring(); showPlan(); } },
    // `copied`: the run whose settings and pictures are taken; without it the form is as it was left
    async show(copied = null) {
      const mine = ++shows;
      title.focus();
      const [isOffered, old] = await Promise.all([offer ? true : load(), copied ? get(`api/runs/${encodeURIComponent(copied)}`) : null]);
      if (mine !== shows) return;
      parts.hidden = command.node.hidden = !isOffered;
      if (!isOffered) return;
      if (old && !old.error) { copy(old); return; }
      missing.replaceChildren(...(old ? [note(old.error)] : []));
      lead.textContent = "";
      if (!preset) usePreset(offer.presets[0]);
      from.show(offer);
    },
  };
}
