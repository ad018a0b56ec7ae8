// The attention view. Everything but another picture, query or input size happens here, without a request.

import { drawRamp } from "./colormap.js";
import { commandLine, h, note, save, seconds, segmented, shellWord, showTab, slider, toggle, weight } from "./dom.js";
import { framed } from "./frame.js";
import { entropyBits, massMask, quantile, strongest } from "./maps.js";
import { doors, line, session, whileVisible } from "./session.js";
import { drawOverlay, drawTile } from "./stage.js";
import { chooseFile } from "./tray.js";
import { attentionMaps, unpack } from "./wire.js";

const CLIP = 0.995;

export function mount({ element, props, trigger, watch }) {
  const look = { layer: -1, head: -1, opacity: 0.85, mass: 1, shared: true, clip: true, hover: null };
  let maps = null; // what wire.js gives, plus frame (framed), picture, query
  let asked = null; // {model, handle, query, size, ticket, since}: the question under way
  let shown = null; // the question whose maps are on screen
  let refused = null; // a question that met an error: not asked again by itself
  let size = null; // input size; null until the model says what it likes
  let sizesOf = null; // the model whose sizes are offered
  let lastPatch = null;
  let tickets = 0;
  let photo = new Image();

  // ---- what stands where
  const overlay = h("canvas", { class: "overlay", tabindex: "0", role: "img", "aria-label": "Attention map" });
  const inner = h("div", { class: "inner" }, photo, overlay);
  photo.alt = "";
  const tag = h("div", { class: "tag" });
  const state = h("div", { class: "state" });
  const loading = h("div", { class: "load", role: "status", hidden: true });
  const stage = h("div", { class: "stage pic" }, inner, tag, state, loading);
  const ramp = h("canvas", { "aria-hidden": "true" });
  const high = h("span");
  const scale = h("div", { class: "scale meta" }, h("span", {}, "0"), ramp, high, h("span", { class: "hide-s" }, "weight per patch"));
  const read = h("span");
  const best = h("span");
  const live = h("div", { class: "quiet-live", "aria-live": "polite" });
  const blockMeta = h("span", { class: "meta" });
  const headMeta = h("span", { class: "meta" });
  const blocks = h("div", { class: "blocks", role: "group", "aria-label": "Transformer block" });
  const heads = h("div", { class: "heads", role: "group", "aria-label": "Attention head" });
  const query = segmented("Query", [["whole", "Class token"], ["patch", "Patch"]], "whole", (kind) =>
    ask(kind === "whole" ? whole()[0] : lastPatch ?? (maps ? strongest(current()) : 0)));
  const opacity = slider("Opacity", { min: 0, max: 100, value: 85, oninput: (v) => { look.opacity = v / 100; draw(); } });
  const mass = slider("Keep top mass", { min: 5, max: 100, value: 100, oninput: (v) => { look.mass = v / 100; draw(); } });
  const sizes = h("select", { "aria-label": "Input size", onchange: () => { size = Number(sizes.value); lastPatch = null; ask(whole()[0]); } });
  const command = commandLine();
  const table = h("details", { class: "fold" }, h("summary", {}, "Show as table"), h("div", { class: "tablebox" }));
  const ctrls = h("div", { class: "ctrls" },
    h("div", { class: "fld" }, h("span", { class: "lab" }, "Query"), query.node),
    h("div", { class: "line" },
      toggle("Same scale for all heads", true, (on) => { look.shared = on; drawAll(); }),
      toggle("Clip at 99.5 %", true, (on) => { look.clip = on; drawAll(); })),
    opacity.node, mass.node,
    h("label", { class: "fld" }, h("span", { class: "lab" }, "Input size"), sizes));
  const png = h("button", { type: "button", class: "btn", onclick: savePng }, "PNG");
  const npz = h("a", { class: "btn", download: "" }, "NPZ");
  const csv = h("button", { type: "button", class: "btn", onclick: saveCsv }, "CSV");
  const view = h("div", { class: "att" },
    h("figure", {}, stage, scale, h("div", { class: "under meta" }, read, best)),
    h("div", { class: "insp" },
      h("div", {}, h("div", { class: "head" }, h("h2", {}, "Block"), blockMeta), blocks),
      h("div", {}, h("div", { class: "head" }, h("h2", {}, "Head"), headMeta), heads),
      ctrls));
  const exports = h("div", { class: "exports" }, png, npz, csv);
  const narrow = matchMedia("(max-width: 640px)");
  const nothing = h("div", { class: "blank", hidden: true }); // in place of all that, for a model without attention
  element.append(view, command.node, table, live, nothing);
  function placeExports() { // beside the tray; on a phone below, where they do not push the picture down
    const acts = document.querySelector("#tray-attention .acts");
    if (narrow.matches) table.before(exports);
    else if (acts && exports.parentNode !== acts) acts.append(exports);
  }
  narrow.addEventListener("change", placeExports);
  drawRamp(ramp);

  // ---- asking the server
  const whole = () => session.facts.model?.whole ?? ["cls", "class token"]; // the query without a place, and its name
  const isPatch = (what) => typeof what === "number";
  const questions = line(({ since, ...question }) => trigger("asked", question));
  function ask(what) {
    const handle = session.handle;
    if (!handle || !session.ready || session.facts.model.no_attention) return;
    asked = { model: session.facts.model.handle, handle, query: what, size, ticket: ++tickets, since: performance.now() };
    questions.ask(asked);
    showWaiting();
  }

  watch("value", async () => {
    const answer = JSON.parse(JSON.stringify(props.value ?? {}));
    const question = questions.settle(answer.ticket);
    if (!question || question !== asked) return;
    const { model } = session.facts;
    if (question.model !== model.handle) { asked = null; return; } // of a model that is shown no more
    try {
      if (answer.error) throw answer.error;
      const [response, next] = await Promise.all([fetch(`api/attention/${answer.key}`), loadPhoto(question.handle)]);
      if (!response.ok) throw { title: "The maps did not arrive.", text: (await response.json()).error };
      const unpacked = attentionMaps(unpack(await response.arrayBuffer()));
      if (asked !== question || model !== session.facts.model) return;
      if (next !== photo) photo.replaceWith(next);
      photo = next;
      maps = { ...unpacked, frame: framed(unpacked.facts.frame), handle: question.handle, query: unpacked.facts.query };
      maps.key = answer.key;
      maps.model = model;
      shown = question;
      asked = null;
      received();
    } catch (error) {
      if (asked !== question) return;
      asked = null;
      refused = question;
      maps = shown = null;
      session.fail(error.title ? error : { title: "The maps did not arrive.", text: error.message || "Try again." });
    }
    showWaiting();
  });

  async function loadPhoto(handle) { // decoded beside the old picture, which stays until the maps are there too
    if (photo.dataset.handle === handle) return photo;
    const next = h("img", { alt: "", src: `api/picture/${handle}`, "data-handle": handle });
    await next.decode();
    return next;
  }

  function received() {
    const { facts } = maps;
    look.hover = null; // a patch of the picture before, which this one may not have
    const ratio = facts.frame.width / facts.frame.height;
    const box = Math.min(4, Math.max(0.4, ratio)); // of very long pictures the stage keeps a shape one can look at
    stage.style.aspectRatio = String(box);
    stage.style.maxWidth = `${Math.min(640, 640 * box)}px`;
    inner.style.width = `${100 * Math.min(1, ratio / box)}%`;
    inner.style.height = `${100 * Math.min(1, box / ratio)}%`;
    if (blockTiles.length !== maps.layers) look.layer = maps.layers - 1; // another model starts at its last block
    if (headTiles.length !== maps.heads + 1) look.head = -1;
    if (isPatch(maps.query)) lastPatch = maps.query;
    const picture = session.pictures.find((one) => one.handle === maps.handle);
    const done = picture?.note ? ` · ${picture.note}` : "";
    read.textContent = `${facts.frame.width}×${facts.frame.height} ${facts.format}${done} · shown whole · ` +
      `${maps.rows}×${maps.columns} patches of ${facts.frame.patch_px} px · ${seconds(facts.time_s)} on ${facts.device}`;
    npz.href = `api/attention/${maps.key}/npz`;
    query.press(isPatch(maps.query) ? "patch" : "whole");
    buildTiles();
    drawAll();
  }

  // ---- drawing
  const current = () => maps.map(look.layer, look.head);
  const top = (arrays) => (look.clip ? quantile(arrays, CLIP) : Math.max(...arrays.map((a) => a[strongest(a)])));
  const headMaps = () => Array.from({ length: maps.heads }, (_, i) => maps.map(look.layer, i));
  const topOf = (index) => top(look.shared ? headMaps() : [maps.map(look.layer, index)]);
  const queryWords = () => (isPatch(maps.query) ? `patch ${place(maps.query)}` : maps.model.whole[1]);
  const place = (patch) => `${Math.floor(patch / maps.columns)}, ${patch % maps.columns}`;
  const headWords = () => (look.head < 0 ? "mean" : `head ${look.head + 1}`);

  function tile(group, name, pressed, onclick) {
    const canvas = h("canvas", { "aria-hidden": "true" });
    const right = h("i");
    const button = h("button", { type: "button", class: "cellb", "aria-pressed": String(pressed), onclick }, canvas, h("span", {}, h("b", {}, name), right));
    group.append(button);
    return { canvas, right, button };
  }

  let blockTiles = [], headTiles = [];
  function buildTiles() {
    if (blockTiles.length === maps.layers && headTiles.length === maps.heads + 1) return;
    blocks.replaceChildren();
    heads.replaceChildren();
    blockTiles = Array.from({ length: maps.layers }, (_, i) => tile(blocks, String(i + 1), false, () => setBlock(i)));
    for (const [i, { button }] of blockTiles.entries()) button.setAttribute("aria-label", `Block ${i + 1}`);
    headTiles = Array.from({ length: maps.heads + 1 }, (_, i) => tile(heads, i ? `Head ${i}` : "Mean", false, () => setHead(i - 1)));
    blocks.style.setProperty("--columns", Math.min(12, Math.max(8, maps.layers)));
  }

  const paint = (canvas, weights, max) => drawTile(canvas, weights, maps.rows, maps.columns, max);
  function drawAll() { // a new result or a new scale
    if (!maps) return;
    blockTiles.forEach(({ canvas }, i) => paint(canvas, maps.map(i, -1), top([maps.map(i, -1)])));
    drawHeads();
  }
  function drawHeads() { // a new block
    const shared = look.shared ? topOf(0) : 0;
    headTiles.forEach(({ canvas, right, button }, i) => {
      const weights = maps.map(look.layer, i - 1);
      const bits = entropyBits(weights).toFixed(1);
      paint(canvas, weights, look.shared ? shared : topOf(i - 1));
      right.textContent = `${bits} bit`;
      button.setAttribute("aria-label", `${i ? `Head ${i}` : "Mean"}, ${bits} bit`);
    });
    draw();
  }
  function draw() { // a new head, opacity or mass
    if (!maps) return;
    const weights = current();
    const max = topOf(look.head);
    const on = massMask(weights, look.mass);
    const ratio = Math.min(2, devicePixelRatio);
    const [width, height] = [Math.round(inner.clientWidth * ratio), Math.round(inner.clientHeight * ratio)];
    if (!width || !height) return;
    if (overlay.width !== width || overlay.height !== height) Object.assign(overlay, { width, height });
    drawOverlay(overlay.getContext("2d"), width, height, {
      weights, rows: maps.rows, columns: maps.columns, frame: maps.frame, max, opacity: look.opacity, on,
      query: isPatch(maps.query) ? maps.query : null, hover: look.hover,
    });
    blockTiles.forEach(({ button }, i) => button.setAttribute("aria-pressed", String(i === look.layer)));
    headTiles.forEach(({ button }, i) => button.setAttribute("aria-pressed", String(i - 1 === look.head)));
    say(weights, max);
  }

  function say(weights, max) {
    const peak = strongest(weights);
    const [row, column] = [Math.floor(peak / maps.columns), peak % maps.columns];
    const name = `Block ${look.layer + 1} · ${headWords()} · from ${queryWords()}`;
    tag.textContent = name;
    blockMeta.textContent = `mean over heads, own scale each, from ${queryWords()}`;
    headMeta.textContent = `entropy of the row; ${Math.log2(maps.patches).toFixed(1)} bit is uniform`;
    high.textContent = `${weight(max)}${look.clip ? " (99.5 %)" : ""}`;
    best.textContent = look.hover === null
      ? `strongest at row ${row}, column ${column}: ${weight(weights[peak])}`
      : `row ${Math.floor(look.hover / maps.columns)}, column ${look.hover % maps.columns}: ${weight(weights[look.hover])}`;
    if (look.hover === null) {
      const words = `${name}; strongest at row ${row}, column ${column}, weight ${weight(weights[peak])}`;
      overlay.setAttribute("aria-label", `Attention map. ${words}. Arrow keys move the query patch.`);
      live.textContent = words;
      writeCommand();
      if (table.open) fillTable();
    }
  }

  function writeCommand() {
    const name = session.pictures.find((one) => one.handle === maps.handle)?.name ?? "picture.png";
    command.text = `python -m analysis attention ${shellWord(name)} --model ${shellWord(maps.model.typed)} ` +
      `--layer ${look.layer} --query ${maps.query} --size ${maps.facts.size} --out attention.png`;
  }

  function fillTable() {
    const weights = current();
    const order = Array.from(weights.keys()).sort((a, b) => weights[b] - weights[a] || a - b).slice(0, 20);
    const total = weights.reduce((a, b) => a + b, 0);
    let sum = 0;
    const rows = order.map((patch, rank) => {
      sum += weights[patch];
      return h("tr", {}, [rank + 1, Math.floor(patch / maps.columns), patch % maps.columns, weight(weights[patch]), `${((100 * sum) / total).toFixed(1)} %`].map((cell) => h("td", {}, String(cell))));
    });
    table.lastElementChild.replaceChildren(h("table", { class: "tbl" },
      h("caption", { class: "meta" }, `${tag.textContent}: the 20 strongest of ${maps.patches} patches`),
      h("thead", {}, h("tr", {}, ["Rank", "Row", "Column", "Weight", "Mass so far"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, rows)));
  }
  table.addEventListener("toggle", () => { if (table.open && maps) fillTable(); });

  // ---- states
  function showNothing(model) {
    const button = (words, onclick, kind = "") => h("button", { type: "button", class: `btn${kind}`, onclick }, words);
    nothing.replaceChildren(h("p", {}, model.no_attention), h("p", { class: "meta" }, model.can), h("div", { class: "line" },
      model.memory ? button("See its memory", () => showTab("Memory"), " pri") : session.facts.public ? null : button("Give it a memory", () => doors.remember(), " pri"),
      button("Choose another model", () => doors.models())));
  }

  let slow;
  function showWaiting() {
    clearTimeout(slow);
    const { facts } = session;
    const problem = facts.state === "failed" ? facts : null;
    const has = facts.state !== "ready" || !facts.model.no_attention;
    for (const node of [view, command.node, table]) node.hidden = !has;
    const pictures = document.getElementById("tray-attention");
    if (pictures) pictures.hidden = !has;
    exports.hidden = !has;
    nothing.hidden = has;
    if (!has) showNothing(facts.model);
    view.classList.toggle("empty", !maps);
    for (const button of [png, csv]) button.disabled = !maps;
    npz.classList.toggle("off", !maps);
    if (!maps) npz.removeAttribute("href");
    for (const control of ctrls.querySelectorAll("button, input, select")) control.disabled = !maps;
    query.button("whole").textContent = whole()[1][0].toUpperCase() + whole()[1].slice(1);
    state.hidden = Boolean(maps) || Boolean(asked);
    if (!state.hidden) {
      state.replaceChildren(...(problem ? [note(problem)] : facts.state === "starting"
        ? [h("p", {}, "Opening the model"), h("p", { class: "meta" }, "It takes a few seconds; the maps appear by themselves.")]
        : [h("p", {}, "Choose a picture to see where each head of this model looks."),
          h("button", { type: "button", class: "btn pri", onclick: chooseFile }, "Add a picture"),
          h("p", { class: "meta" }, "or start with a sample above · JPEG, PNG, WebP, AVIF, up to 50 MB")]));
    }
    if (!maps) {
      read.textContent = { starting: "The model is being opened", failed: "No model", ready: "No picture" }[facts.state];
      best.textContent = "";
    }
    loading.hidden = true;
    view.classList.remove("old");
    if (asked) slow = setTimeout(showLoading, 150);
  }
  function showLoading() { // nothing below 150 ms
    if (!asked) return;
    loading.hidden = false;
    view.classList.toggle("old", Boolean(maps));
    const time = ((performance.now() - asked.since) / 1000).toFixed(1);
    loading.replaceChildren(
      h("div", { class: "line spread" }, h("span", {}, `Running ${session.facts.model.name}`), h("span", { class: "meta" }, `${time} s`)),
      h("span", { class: "meta" }, maps ? "The previous result stays until the new one is there." : "The maps appear here."));
    slow = setTimeout(showLoading, 100);
  }

  // ---- choosing
  const setBlock = (layer) => { look.layer = layer; if (maps) drawHeads(); };
  const setHead = (head) => { look.head = head; draw(); };
  const patchUnder = (event) => {
    const box = inner.getBoundingClientRect();
    return maps?.frame.at((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height) ?? null;
  };
  overlay.addEventListener("click", (event) => {
    const patch = patchUnder(event);
    if (patch !== null) ask(patch);
  });
  overlay.addEventListener("pointermove", (event) => {
    const patch = event.pointerType === "touch" ? null : patchUnder(event);
    if (patch !== look.hover) { look.hover = patch; draw(); }
  });
  overlay.addEventListener("pointerleave", () => { look.hover = null; draw(); });

  const step = (value, by, low, high) => Math.min(high, Math.max(low, value + by));
  function moveQuery(rows, columns) {
    const patch = asked && isPatch(asked.query) ? asked.query : lastPatch ?? strongest(current());
    const row = step(Math.floor(patch / maps.columns), rows, 0, maps.rows - 1);
    ask(row * maps.columns + step(patch % maps.columns, columns, 0, maps.columns - 1));
  }
  const keys = {
    ArrowUp: () => moveQuery(-1, 0), ArrowDown: () => moveQuery(1, 0), ArrowLeft: () => moveQuery(0, -1), ArrowRight: () => moveQuery(0, 1),
    "[": () => setHead(step(look.head, -1, -1, maps.heads - 1)), "]": () => setHead(step(look.head, 1, -1, maps.heads - 1)),
    ",": () => setBlock(step(look.layer, -1, 0, maps.layers - 1)), ".": () => setBlock(step(look.layer, 1, 0, maps.layers - 1)),
    o: () => opacity.input.focus(), t: () => mass.input.focus(),
    c: () => ask(whole()[0]),
    Escape: () => { look.mass = 1; mass.value = 100; look.head = -1; if (isPatch(maps.query)) keys.c(); draw(); },
  };
  document.addEventListener("keydown", (event) => {
    if (!maps || element.offsetParent === null || document.querySelector("dialog[open]") || event.ctrlKey || event.metaKey || event.altKey) return;
    const arrow = event.key.startsWith("Arrow");
    if (arrow ? event.target !== overlay : event.target.matches("input[type=text], input[type=number], textarea, select, [contenteditable]")) return;
    const action = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });

  // ---- taking away
  const stem = () => (session.pictures.find((one) => one.handle === maps.handle)?.name ?? "picture").replace(/\.[^.]*$/, "").replace(/[^\w-]+/g, "-") || "picture";
  const fileName = (suffix) => `${stem()}-block${look.layer + 1}-${headWords().replace(" ", "")}.${suffix}`;
  function savePng() {
    const canvas = h("canvas", { width: photo.naturalWidth, height: photo.naturalHeight });
    const over = new OffscreenCanvas(canvas.width, canvas.height);
    drawOverlay(over.getContext("2d"), canvas.width, canvas.height, {
      weights: current(), rows: maps.rows, columns: maps.columns, frame: maps.frame, max: topOf(look.head), opacity: look.opacity,
      on: massMask(current(), look.mass), query: isPatch(maps.query) ? maps.query : null, hover: null,
    });
    const context = canvas.getContext("2d");
    context.drawImage(photo, 0, 0);
    context.drawImage(over, 0, 0);
    canvas.toBlob((blob) => save(blob, fileName("png")), "image/png");
  }
  function saveCsv() { // every head of the block on screen, patches in pixels of the original picture
    const all = [-1, ...Array.from({ length: maps.heads }, (_, i) => i)].map((i) => maps.map(look.layer, i));
    const { width, height } = maps.facts.frame;
    const lines = [["row", "column", "x_px", "y_px", "mean", ...all.slice(1).map((_, i) => `head_${i + 1}`)].join(",")];
    for (let patch = 0; patch < maps.patches; patch++) {
      const [x0, y0, x1, y1] = maps.frame.box(patch);
      const centre = [((x0 + x1) / 2) * width - 0.5, ((y0 + y1) / 2) * height - 0.5].map((v) => v.toFixed(2));
      lines.push([Math.floor(patch / maps.columns), patch % maps.columns, ...centre, ...all.map((w) => w[patch].toPrecision(7))].join(","));
    }
    save(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }), fileName("csv"));
  }

  new ResizeObserver(() => { if (maps) drawAll(); }).observe(stage);
  whileVisible(element, () => {
    placeExports();
    const { model } = session.facts;
    if (model && sizesOf !== model.handle) { // another model: its own input sizes, and the query it starts with
      sizes.replaceChildren(...model.sizes.map(([px, words]) => h("option", { value: px }, words)));
      size = model.size;
      sizes.value = String(size);
      sizesOf = model.handle;
    }
    if (model?.no_attention) maps = asked = shown = null;
    const wanted = session.handle;
    const known = [asked ?? shown, session.problem && refused].some((question) => question?.handle === wanted && question.model === model?.handle);
    if (session.ready && wanted && !known) {
      lastPatch = null;
      ask(whole()[0]);
    }
    showWaiting();
  });
}
