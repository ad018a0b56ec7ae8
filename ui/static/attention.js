// The attention view. Everything but another picture, query, input size or rollout happens here, without a request.

import { questions } from "./asking.js";
import { commandOf, csvOf, fileStem, strongestTable } from "./attentionfiles.js";
import { keepLink, keepPicture, readLink } from "./attentionlink.js";
import { attentionStage } from "./attentionstage.js";
import { commandLine, h, rested, save, seconds, segmented, slider, toggle } from "./dom.js";
import { exportsRow } from "./exports.js";
import { framed, gridAt } from "./frame.js";
import { shortcuts } from "./keys.js";
import { looking } from "./looking.js";
import { measured } from "./measures.js";
import { noAttention } from "./noattention.js";
import { opening } from "./opening.js";
import { patchPixels } from "./patchpixels.js";
import { prefixWords } from "./prefix.js";
import { session, whileVisible } from "./session.js";
import { tilesView } from "./tiles.js";
import { attentionMaps, unpack } from "./wire.js";

const ADDRESSES = { maps: "attention", rollout: "rollout" };
const REST_MS = 300; // after the last step of a slider that asks the server
const IDLE_MS = 900; // without a question, before the rollout is brought unasked
const LIGHT_S = 0.5; // and only where the maps themselves came this soon
const KEYS = [
  [["←", "→", "↑", "↓"], "move the query patch, while the picture has the focus"], [["[", "]"], "attention head before, next"],
  [[",", "."], "transformer block before, next"], [["O"], "to the opacity"], [["T"], "to the top mass that is kept"],
  [["C"], "query: class token, or the mean over patches"], [["Esc"], "all mass, mean over heads, first query"], [["?"], "this list"]];

const isPatch = (query) => typeof query === "number";
const step = (value, by, low, high) => Math.min(high, Math.max(low, value + by));
const usual = (model) => ({ layer: model.blocks - 1, head: "mean", query: model.whole[0], size: model.size, start: 0, opacity: 0.85, mass: 1, shared: true, clip: true });

export function mount({ element, props, trigger, watch }) {
  const look = { hover: null, preview: null }; // and what `usual` names; query and size are those on screen or asked for
  let linked = [null, "attention"].includes(session.link.get("tab")) ? session.link : null; // not yet restored
  let offered = null; // the model whose blocks, heads and sizes are offered
  let [maps, measures] = [null, null]; // what wire.js gives, plus key, model, handle, query, size, frame; and their numbers
  let asked = null; // {model, handle, query, size, isRolled, since}: the question under way, with its rollout or without
  let shown = null; // the question whose maps are on screen
  let refused = null; // a question that met an error: not asked again by itself
  let rolling = null; // {start, isQuiet, since}: the rollout under way
  let nextQuery = null; // of the picture that is coming
  let lastPatch = null;
  let pace = null; // {model, s}: seconds of an answer per unit of work
  const timed = new Set(); // pictures and sizes that were answered: what is asked of them next is quicker

  // ---- what stands where
  const stage = attentionStage({
    pick: pickPatch, query: show, cancel, again: () => { session.problem = null; ask(); session.tell(); }, resized: () => drawAll(),
    hover: (patch) => { if (patch !== look.hover) { look.hover = patch; draw(); } },
  });
  const tiles = tilesView({ block: setBlock, head: setHead, preview });
  const queries = h("div", { class: "fld" }, h("span", { class: "lab" }, "Query"));
  let query = null; // segmented, of the model's queries
  const opacity = slider("Opacity", { min: 0, max: 100, value: 85, oninput: (v) => { look.opacity = v / 100; draw(); } });
  const mass = slider("Keep top mass", { min: 5, max: 100, value: 100, oninput: (v) => { look.mass = v / 100; draw(); } });
  const shared = toggle("Same scale for all heads", true, (on) => { look.shared = on; drawAll(); });
  const clip = toggle("Clip at 99.5 %", true, (on) => { look.clip = on; drawAll(); });
  const askSoon = rested(REST_MS, () => setSize(sizeAt(sizes.value)));
  const sizes = slider("Input size", { min: 0, max: 0, value: 0, words: sizeWords, oninput: askSoon });
  const rollSoon = rested(REST_MS, () => roll());
  const start = slider("Rollout from block", { min: 1, max: 1, value: 1, words: String, oninput: (v) => { look.start = v - 1; rollSoon(); } });
  const keys = shortcuts("attention-keys", { list: KEYS, actions: actions(), arrowsOf: stage.overlay, isOn: () => maps && element.offsetParent !== null });
  const ctrls = h("div", { class: "ctrls" },
    queries, h("div", { class: "line" }, shared, clip), opacity.node, mass.node, h("div", { class: "wide" }, sizes.node), start.node,
    h("button", { type: "button", class: "btn quiet keysbtn", "aria-haspopup": "dialog", onclick: keys.show }, "Keys", h("kbd", {}, "?")));
  const view = h("div", { class: "att empty" }, stage.node, h("div", { class: "insp" }, tiles.node, ctrls));
  const command = commandLine();
  const table = strongestTable();
  const pixels = patchPixels();
  const nothing = noAttention(); // in place of all that, where a model has none
  const png = h("button", { type: "button", class: "btn", onclick: savePng }, "PNG");
  const npz = h("a", { class: "btn", download: "" }, "NPZ");
  const csv = h("button", { type: "button", class: "btn", onclick: () => save(new Blob([csvOf(scene())], { type: "text/csv" }), `${stem()}.csv`) }, "CSV");
  const exports = exportsRow({ tray: "tray-attention", below: command.node, keepLink: () => keepNow(), buttons: [png, npz, csv] });
  element.append(view, command.node, table.node, pixels.node, nothing.node, keys.dialog);

  // ---- what the model offers
  function offer(model) {
    if (offered?.handle === model.handle) return;
    const [before, plain] = [offered, usual(model)];
    offered = model;
    if (!before) Object.assign(look, linked ? readLink(linked, model, plain) : plain);
    else Object.assign(look, { query: plain.query, size: plain.size, start: Math.min(look.start, model.blocks - 1) });
    const isHere = (linked?.get("img") ?? session.handle) === session.handle; // else a patch of the link means nothing
    nextQuery = linked && (isHere || !isPatch(look.query)) ? look.query : null;
    linked = null;
    const choices = [...(model.prefix_tokens.includes("cls") ? [["cls", "Class token"]] : []), ["mean", "Mean"], ["patch", "Patch"]];
    query = segmented("Query", choices, null, (kind) => (kind === "patch" ? pickPatch(lastPatch ?? measures.peak(look.layer, look.head)) : show(kind)));
    queries.replaceChildren(queries.firstChild, query.node);
    if (!maps) fit(model);
    sizes.range(0, model.attention_sizes.length - 1);
    start.range(1, model.blocks);
    showControls();
  }
  // tiles and cells as this model has them, and a block and head that it has; of the model before they stay with its maps
  function fit(model) {
    const isOther = tiles.build(model.blocks, model.heads); // than before, or the first
    look.layer = isOther && maps ? model.blocks - 1 : Math.min(look.layer, model.blocks - 1);
    if (isPatch(look.head) && look.head >= model.heads) look.head = "mean";
    stage.cells.build(model.prefix_tokens);
  }
  function showControls() {
    [opacity.value, mass.value, start.value] = [Math.round(100 * look.opacity), Math.round(100 * look.mass), look.start + 1];
    [shared.firstChild.checked, clip.firstChild.checked] = [look.shared, look.clip];
    sizes.value = offered.attention_sizes.findIndex(([px]) => px === look.size);
  }
  const sizeAt = (at) => offered.attention_sizes[at][0];
  function sizeWords(at) {
    const [px, side, work] = offered?.attention_sizes[at] ?? [];
    if (!px) return "";
    const { rows, columns } = maps?.size === px ? maps : maps ? gridAt(maps.facts.frame, px) : { rows: side, columns: side };
    const time = pace?.model === offered.handle ? ` · about ${seconds(pace.s * work)}` : "";
    return `${px} px · ${rows}×${columns} patches${time}`;
  }
  const workOf = (size) => offered.attention_sizes.find(([px]) => px === size)?.[2] ?? 1;

  // ---- asking the server
  const line = questions({ props, trigger, watch });
  async function bring(kind, question) { // null when a later question took its place
    const answer = await line.ask({ ask: kind, ...question });
    if (!answer) return null;
    if (answer.error) throw answer.error;
    const response = await fetch(`api/${ADDRESSES[kind]}/${answer.key}`);
    if (!response.ok) throw { title: "The maps did not arrive.", text: (await response.json()).error };
    return { key: answer.key, ...unpack(await response.arrayBuffer()) };
  }
  const bringRollout = async (question) => {
    const told = await bring("rollout", { ...question, start: look.start });
    return told && { start: told.facts.start, rows: told.arrays.rows };
  };
  const told = (error) => (error.title ? error : { title: "The maps did not arrive.", text: error.message || "Try again." });

  async function ask() {
    const { model } = session.facts;
    if (!session.handle || !session.ready || model.no_attention) return;
    const question = { model: model.handle, handle: session.handle, query: look.query, size: look.size };
    const isRolled = look.head === "rollout" || Boolean(asked?.isRolled || (rolling && !rolling.isQuiet));
    const mine = asked = { ...question, isRolled, since: performance.now() };
    rolling = null;
    clearTimeout(idle);
    showWaiting();
    try {
      const [answer, photo] = await Promise.all([bring("maps", question), stage.load(question.handle)]);
      if (asked !== mine) return;
      const next = Object.assign(attentionMaps(answer), question, { key: answer.key, model, frame: framed(answer.facts.frame) });
      if (mine.isRolled) next.rolled = await bringRollout(question);
      if (asked !== mine) return;
      asked = null;
      if (model.handle === session.facts.model?.handle) received(next, photo, mine); // else of a model that is shown no more
    } catch (error) {
      if (asked !== mine) return;
      asked = null;
      if (!maps && isPatch(question.query)) { // a link's, beyond this picture's patches
        look.query = usual(model).query;
        ask();
        return;
      }
      refused = mine;
      forget();
      session.fail(told(error));
    }
    showWaiting();
  }

  function received(next, photo, question) {
    const visit = `${question.model} ${question.handle} ${question.size}`;
    if (!timed.has(visit)) pace = { model: question.model, s: next.facts.time_s / workOf(question.size) };
    timed.add(visit);
    [maps, measures, shown] = [next, measured(next), question];
    fit(maps.model);
    if (question.isRolled) look.head = "rollout";
    look.hover = look.preview = null; // a patch of the picture before, which this one may not have
    if (isPatch(maps.query)) lastPatch = maps.query;
    stage.receive(maps, photo, picture()?.note);
    npz.href = `api/attention/${maps.key}/npz`;
    query.press(isPatch(maps.query) ? "patch" : maps.query);
    showControls();
    drawAll();
    if (!maps.rolled && maps.facts.time_s <= LIGHT_S) idle = setTimeout(() => { if (!asked && !rolling && element.offsetParent) roll({ isQuiet: true }); }, IDLE_MS);
  }
  let idle;
  function forget() {
    if (maps && offered) fit(offered); // the maps may be of a model before
    maps = measures = shown = looking.shown = null;
    looking.tell();
  }

  // A rollout that was asked for is shown, one that comes unasked only fills its tile
  async function roll({ isQuiet = false } = {}) {
    if (asked) asked.isRolled ||= !isQuiet;
    if (!maps || asked) return;
    clearTimeout(idle);
    if (rolling?.start === look.start) { // under way, and now wanted
      rolling.isQuiet &&= isQuiet;
      showWaiting();
      return;
    }
    const [of, mine] = [maps, { start: look.start, isQuiet, since: performance.now() }];
    rolling = mine;
    showWaiting();
    try {
      const { model, handle, size } = shown;
      const rolled = await bringRollout({ model, handle, query: shown.query, size });
      if (rolling !== mine || !rolled) return;
      rolling = null;
      of.rolled = rolled;
      if (!mine.isQuiet) look.head = "rollout";
      drawHeads();
    } catch (error) {
      if (rolling !== mine) return;
      rolling = null;
      start.value = (look.start = of.rolled?.start ?? 0) + 1;
      if (!mine.isQuiet) session.fail(told(error));
    }
    showWaiting();
  }

  // ---- drawing
  const picture = () => session.pictures.find((one) => one.handle === maps.handle);
  const file = () => picture()?.name ?? "picture.png";
  const stem = () => fileStem(file(), scene());
  const place = (patch) => `${Math.floor(patch / maps.columns)}, ${patch % maps.columns}`;
  const queryWords = () => (isPatch(maps.query) ? `patch ${place(maps.query)}` : prefixWords(maps.query) ?? "mean over patches");
  const headWords = (head) => (head === "rollout" ? `rollout from block ${maps.rolled.start + 1}` : isPatch(head) ? `head ${head + 1}` : head);

  // What is drawn, and what it says: of the chosen head, or of one that the pointer passes over
  function scene(head = look.head) {
    const { layer, mass: kept, hover } = look;
    const [of, at] = [queryWords(), headWords(head)];
    return {
      maps, layer, head, hover, query: maps.query, isPatch: isPatch(maps.query), frame: maps.frame, opacity: look.opacity, clip: look.clip, mass: kept,
      weights: maps.map(layer, head), prefix: maps.prefix(layer, head), row: maps.row(layer, head),
      top: measures.top(layer, head, look), peak: measures.peak(layer, head), on: measures.mask(layer, head, kept),
      get order() { return measures.order(layer, head); },
      name: `Block ${layer + 1} · ${at} · from ${of}`, headWords: at, queryWords: of, isCut: kept < 1, isPassing: hover !== null || look.preview !== null,
    };
  }
  function drawAll() { // a new result or a new scale
    if (!maps) return;
    tiles.draw(maps, measures, look);
    tiles.say(queryWords(), Math.log2(maps.patches));
    draw();
  }
  function drawHeads() { // a new block or a rollout
    if (!maps) return;
    tiles.drawHeads(maps, measures, look);
    draw();
  }
  function draw() { // a new head, opacity or mass
    if (!maps) return;
    const drawn = scene(look.preview ?? look.head);
    stage.draw(drawn);
    if (drawn.isPassing) return;
    tiles.press(look);
    command.text = commandOf(drawn, file());
    table.hear(scene);
    pixels.hear(scene);
    const { key, model, handle, size, frame } = maps;
    looking.shown = { key, model, handle, query: maps.query, size, layer: look.layer, head: look.head, mass: look.mass, maps, photo: stage.photo, frame };
    looking.tell();
    keepSoon();
  }
  function keepNow() {
    if (!maps || offered.handle !== maps.model.handle || element.offsetParent === null) return;
    keepLink({ ...look, query: maps.query, size: maps.size }, usual(maps.model));
  }
  const keepSoon = rested(200, keepNow); // browsers refuse an address that changes at every step

  // ---- states
  let slow;
  function showWaiting() {
    clearTimeout(slow);
    const { facts } = session;
    const has = facts.state !== "ready" || !facts.model.no_attention;
    for (const node of [view, command.node, table.node, pixels.node]) node.hidden = !has;
    exports.node.hidden = !has;
    nothing.show(has ? null : facts);
    view.classList.toggle("empty", !maps);
    element.classList.toggle("unknown", !offered); // nothing has its size yet
    for (const button of [exports.copy, png, csv]) button.disabled = !maps;
    npz.classList.toggle("off", !maps);
    if (!maps) npz.removeAttribute("href");
    for (const control of ctrls.querySelectorAll("button, input")) control.disabled = !maps;
    tiles.enable(Boolean(maps));
    stage.cells.enable(Boolean(maps));
    const isLeft = facts.state === "ready" && refused?.handle === session.handle && refused.model === facts.model.handle;
    stage.say(maps || asked ? null : isLeft ? "left" : facts.state, facts.state === "failed" ? facts : null);
    if (!maps) stage.clear(isLeft ? "No maps" : { starting: "The model is being opened", failed: "No model", ready: "No picture" }[facts.state]);
    stage.wait(null);
    view.classList.remove("old");
    if (asked || (rolling && !rolling.isQuiet)) slow = setTimeout(showLoading, 150); // nothing below
  }
  function showLoading() {
    const now = asked ?? rolling;
    if (!now) return;
    const words = asked ? `Running ${session.facts.model.name}` : `Rollout from block ${rolling.start + 1}`;
    const about = asked && pace?.model === asked.model ? pace.s * workOf(asked.size) : null;
    view.classList.toggle("old", Boolean(maps));
    stage.wait({ words, ms: performance.now() - now.since, about });
    slow = setTimeout(showLoading, 100);
  }
  function cancel() { // the answer may still come, nobody waits for it
    if (asked) refused = { ...asked, isCancelled: true };
    asked = rolling = null;
    if (shown && shown.model !== offered.handle) forget();
    if (shown && shown.handle !== session.handle) session.choose(shown.handle);
    if (shown) Object.assign(look, { query: shown.query, size: shown.size, start: maps.rolled?.start ?? look.start });
    showControls();
    showWaiting();
  }

  // ---- choosing
  function show(what) {
    look.query = what;
    ask();
  }
  // a patch of the picture on screen: at the same place of another input size, if one is on its way
  function pickPatch(patch) {
    if (maps && session.handle === maps.handle) show(look.size === maps.size ? patch : samePlace(patch, look.size));
  }
  function samePlace(patch, size) {
    const { rows, columns } = gridAt(maps.facts.frame, size);
    const [row, column] = [Math.floor(patch / maps.columns), patch % maps.columns];
    return Math.floor(((row + 0.5) / maps.rows) * rows) * columns + Math.floor(((column + 0.5) / maps.columns) * columns);
  }
  function setSize(size) {
    if (!maps || size === look.size) return;
    if (isPatch(maps.query)) look.query = samePlace(maps.query, size);
    else lastPatch = null;
    look.size = size;
    ask();
  }
  function setBlock(layer) {
    look.layer = layer;
    drawHeads();
  }
  function setHead(head) {
    look.preview = null;
    if (head === "rollout" && maps?.rolled?.start !== look.start) { roll(); return; }
    if (rolling && !rolling.isQuiet) { // it is no longer wanted
      rolling = null;
      showWaiting();
    }
    if (asked) asked.isRolled = head === "rollout";
    look.head = head;
    draw();
  }
  function preview(head) {
    if (!maps || (head !== null && !maps.map(look.layer, head))) return;
    look.preview = head;
    draw();
  }
  function moveQuery(rows, columns) {
    const patch = isPatch(look.query) && look.size === maps.size ? look.query : lastPatch ?? measures.peak(look.layer, look.head);
    const row = step(Math.floor(patch / maps.columns), rows, 0, maps.rows - 1);
    pickPatch(row * maps.columns + step(patch % maps.columns, columns, 0, maps.columns - 1));
  }
  function nextHead(by) {
    const order = tiles.order();
    setHead(order[step(order.indexOf(look.head), by, 0, order.length - 1)]);
  }
  function actions() {
    return {
      ArrowUp: () => moveQuery(-1, 0), ArrowDown: () => moveQuery(1, 0), ArrowLeft: () => moveQuery(0, -1), ArrowRight: () => moveQuery(0, 1),
      "[": () => nextHead(-1), "]": () => nextHead(1),
      ",": () => setBlock(step(look.layer, -1, 0, maps.layers - 1)), ".": () => setBlock(step(look.layer, 1, 0, maps.layers - 1)),
      o: () => opacity.input.focus(), t: () => mass.input.focus(), c: () => show(offered.whole[0]),
      Escape: () => {
        look.mass = 1;
        mass.value = 100;
        setHead("mean");
        if (look.query !== offered.whole[0]) show(offered.whole[0]);
      },
    };
  }
  looking.onchoose(({ layer, head, query: what, handle }) => {
    if (!maps) return;
    if (layer !== undefined) look.layer = layer;
    if (head !== undefined) setHead(head);
    drawHeads();
    if (handle !== undefined && handle !== session.handle) {
      nextQuery = what ?? null;
      session.choose(handle);
    } else if (what !== undefined && what !== look.query) show(what);
    if (layer !== undefined || head !== undefined) stage.overlay.scrollIntoView({ block: "nearest" }); // it was chosen from far below
  });

  // ---- taking away
  async function savePng() {
    const now = scene();
    save(await stage.picture(now), `${fileStem(file(), now)}.png`);
  }

  whileVisible(element, () => {
    exports.place();
    const { model } = session.facts;
    const isAwaited = linked && opening.now && session.link.has("model") && session.link.get("model") !== model?.source; // the model of the link
    if (session.ready && !isAwaited) {
      if (model.no_attention) { asked = null; forget(); keepPicture(); } else offer(model);
      const isLeft = refused && (session.problem || refused.isCancelled); // not to be asked again
      const isKnown = [asked ?? shown, isLeft ? refused : null].some((one) => one?.handle === session.handle && one.model === model.handle);
      if (session.handle && !isKnown && !model.no_attention) {
        const isNew = isPatch(look.query) || shown?.model !== model.handle;
        look.query = nextQuery ?? (isNew ? model.whole[0] : look.query);
        nextQuery = lastPatch = null;
        ask();
      }
      if (maps) keepSoon();
    }
    showWaiting();
  });
}
