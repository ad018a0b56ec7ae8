// The correspondence view. Features travel once for a pair of pictures: lines, rules, thresholds, foregrounds and heat
// maps are made here without a request.

import { questions } from "./asking.js";
import { cividis, drawRamp, viridis } from "./colormap.js";
import { commandOf, csvOf, fileName } from "./correspondencefiles.js";
import { keepLink, readLink } from "./correspondencelink.js";
import { commandLine, count, h, icon, loadPhoto, note, save, seconds, segmented, slider, toggle } from "./dom.js";
import { exportsRow } from "./exports.js";
import { framed } from "./frame.js";
import { offBy } from "./matching.js";
import { opening } from "./opening.js";
import { otherModel } from "./othermodel.js";
import { heatOf, inOther, keptPin, matchesOf, pairView } from "./pairs.js";
import { doors, session, whileVisible } from "./session.js";
import { drawHistogram, drawTable, memoryTiles } from "./tables.js";
import { unpack } from "./wire.js";

const TABLE_ROWS = 10;
const MODES = { matches: "Top matches", heat: "Heat map on hover" };
const RULES = { mutual: "Mutual", argmax: "One way" };
const FRONTS = { none: "All", attention: "Attended", pca: "1st component" };
const CHECKS = { none: "Two pictures", crops: "Crops of A", homography: "Tilted A", mirror: "Mirrored A" };
const RULE_WORDS = {
  mutual: "Mutual: each patch is the other's nearest by cosine; outliers by length are left out.",
  argmax: "One way, as iBOT draws it: each patch of A goes to the largest raw product in B.",
};

export function mount({ element, props, trigger, watch }) {
  const narrow = matchMedia("(max-width: 640px)");
  const first = () => ({ mode: "matches", rule: "mutual", lines: narrow.matches ? 20 : 40, low: null, front: "none", facet: null, layer: null,
    position: true, size: null, check: "none", seed: 1, leave: 2, pin: null });
  const look = { ...first(), hover: null, line: null };
  let linked = session.link.get("tab") === "correspondence" ? session.link : null; // not yet restored
  let offered = null; // the model whose features and sizes are offered
  let crop = null; // {side, patch, rows, box} of the memories on screen, or {side, patch} while they are on their way
  const hear = (view) => ({
    hover: (side, patch) => { if (look.mode === "heat" && look.hover?.patch !== patch) setHover(view, side, patch); },
    pick: (side, patch) => pin(view, side, patch),
    line: (index) => { if (view === views[0] && look.line !== index) { look.line = index; draw(); } },
    key: (side, event) => onKey(view, side, event),
  });
  const views = [];
  for (let i = 0; i < 2; i++) {
    const ears = Object.fromEntries(["hover", "pick", "line", "key"].map((name) => [name, (...given) => hear(views[i])[name](...given)]));
    views.push(Object.assign(pairView(ears), { asked: null, shown: null, refused: null, caption: h("div", { class: "caption meta" }) }));
  }
  const [main, beside] = views;
  const active = () => (other.model ? views : [main]);

  // ---- what stands where
  const mode = segmented("Show", Object.entries(MODES), look.mode, (name) => { look.mode = name; if (name === "matches") unpin(); else draw(); });
  const swap = h("button", { type: "button", class: "btn", onclick: swapPictures }, icon("swap"), "Swap");
  const fills = segmented("The tray fills", [["a", "A"], ["b", "B"]], session.side, (side) => { session.side = side; session.tell(); });
  const ramp = h("canvas", { "aria-hidden": "true" });
  const [lowest, highest, counted] = [h("span"), h("span"), h("span")];
  const legend = h("div", { class: "legend meta" }, lowest, ramp, highest, counted);
  const loading = h("div", { class: "load", role: "status", hidden: true });
  const state = h("div", { class: "blank", hidden: true });
  const stages = h("div", { class: "pairs" }, views.map((view) => h("figure", {}, view.caption, view.node)), loading);
  const low = slider("Smallest score", { min: -100, max: 100, value: -100, words: (v) => (v / 100).toFixed(2), oninput: (v) => { look.low = v / 100; draw(); } });
  const lines = slider("Lines", { min: 1, max: 400, value: look.lines, words: (v) => String(v), oninput: (v) => { look.lines = v; draw(); } });
  const leave = slider("Left out around the click", { min: 0, max: 8, value: look.leave, words: (v) => (v === 1 ? "1 patch" : `${v} patches`), oninput: (v) => { look.leave = v; draw(); } });
  const rule = segmented("Rule", Object.entries(RULES), look.rule, (name) => { look.rule = name; look.low = null; draw(); });
  const front = segmented("Foreground", Object.entries(FRONTS), look.front, (name) => { look.front = name; draw(); });
  const facet = h("select", { "aria-label": "Facet", onchange: () => { look.facet = facet.value; wish(); } });
  const layer = h("select", { "aria-label": "Layer", onchange: () => { look.layer = Number(layer.value); wish(); } });
  const sizes = h("select", { "aria-label": "Input size", onchange: () => { look.size = Number(sizes.value); wish(); } });
  const place = toggle("Take position out", false, (on) => { look.position = !on; wish(); });
  const check = segmented("Pictures", Object.entries(CHECKS), look.check, (name) => { look.check = name; unpin(); wish(); });
  const redraw = h("button", { type: "button", class: "btn small", onclick: () => { look.seed = (look.seed + 1) % 10_000; unpin(); wish(); } }, "Another draw");
  const other = otherModel({ id: "correspondence-sources", changed: () => { if (!other.model) beside.shown = beside.asked = null; wish(); draw(); } });
  const told = h("p", { class: "meta" });
  const known = h("section", { "aria-label": "Checked against the known answer", hidden: true });
  const fld = (name, ...nodes) => h("div", { class: "fld" }, h("span", { class: "lab" }, name), nodes);
  const controls = h("section", { class: "settings", "aria-label": "Settings" },
    low.node, lines.node, leave.node, fld("Rule", rule.node), fld("Features", h("div", { class: "two" }, facet, layer)),
    fld("Foreground", front.node), place, fld("Input size", sizes), fld("Compare with", other.input, other.sources, other.said), told);
  const chart = h("section", { "aria-label": "Scores" });
  const table = h("section", { "aria-label": "Strongest matches" });
  const command = commandLine();
  const live = h("div", { class: "quiet-live", "aria-live": "polite" });
  const bar = h("div", { class: "toolbar" }, mode.node, swap, fld("Tray fills", fills.node), legend);
  const pictures = h("div", { class: "toolbar" }, check.node, redraw);
  const view = h("div", { class: "corr" }, bar, pictures, stages, h("div", { class: "below" }, controls, chart, h("div", { class: "side" }, known, table)), command.node, live);
  element.append(view, state);
  const png = h("button", { type: "button", class: "btn", onclick: () => main.picture().toBlob((blob) => save(blob, fileName(main.result, "png")), "image/png") }, "PNG");
  const npz = h("a", { class: "btn", download: "" }, "NPZ");
  const csv = h("button", { type: "button", class: "btn", onclick: saveCsv }, "CSV");
  const exports = exportsRow({ tray: "tray-correspondence", below: command.node, keepLink: keepNow, buttons: [png, npz, csv] });

  // ---- asking the server
  const line = questions({ props, trigger, watch });

  function questionFor(model) {
    const { a, b } = session.pair;
    const made = session.isMade;
    return { model: model.handle, a, b: made ? a : b, check: made ? look.check : null, seed: look.seed, position: look.position, ...featuresOf(model) };
  }
  // what was chosen, or, where nothing was or the model has no such, its own default
  function featuresOf(model) {
    const { facet: usual, layer: usualLayer } = model.match;
    const from = look.layer === null || model.layers + look.layer < 0 ? usualLayer : look.layer;
    return { facet: model.facets.includes(look.facet) ? look.facet : usual, layer: model.layers + from, size: model.sizes.some(([px]) => px === look.size) ? look.size : model.size };
  }

  function wish() {
    const { model } = session.facts;
    if (linked && session.link.has("model") && session.link.get("model") !== model?.source && opening.now) {
      showState(); // the model of the link is still on its way
      return;
    }
    if (session.ready && session.pair.a && session.pair.b) {
      offer(model);
      const made = look.check !== "none";
      if (session.isMade !== made) { // the tray shows it, and comes back here
        session.isMade = made;
        session.tell();
        return;
      }
      active().forEach((view, i) => bringPair(view, i ? other.model : model));
      keepNow();
    }
    showState();
  }

  async function bringPair(view, model) {
    const question = questionFor(model);
    const name = JSON.stringify(question);
    if (name === (view.asked ?? view.shown)?.name || (session.problem && view.refused === name)) return;
    const mine = view.asked = { name, question, since: performance.now() };
    showState();
    const answer = await line.ask(question, { kind: view });
    if (view.asked !== mine) return;
    try {
      if (answer.error) throw answer.error;
      const response = await fetch(`api/matches/${answer.key}`);
      if (!response.ok) throw { title: "The matches did not arrive.", text: (await response.json()).error };
      const told = unpack(await response.arrayBuffer());
      const photos = await Promise.all(told.facts.pictures.map(({ handle }) => loadPhoto(handle)));
      if (view.asked !== mine) return;
      view.asked = null;
      view.shown = mine;
      received(view, model, answer.key, told, photos);
    } catch (error) {
      if (view.asked !== mine) return;
      view.asked = null;
      view.refused = name;
      session.fail(error.title ? error : { title: "The matches did not arrive.", text: error.message || "Try again." });
    }
    showState();
  }

  function received(view, model, key, { facts, arrays, shapes }, [photoA, photoB]) {
    const frames = { a: framed(facts.frame_a), b: framed(facts.frame_b) };
    const names = { a: nameOf(facts.pictures[0]), b: nameOf(facts.pictures[1]) };
    const same = facts.pictures[0].handle === facts.pictures[1].handle;
    const before = view.result;
    view.show({ model, key, facts, arrays, frames, names, same, width: shapes.a[1], photos: { a: photoA, b: photoB } });
    if (view === main) {
      look.line = look.hover = null;
      look.pin = keptPin(look.pin, before, view.result);
      wake();
    }
    draw();
  }

  const nameOf = (picture) => session.pictures.find((one) => one.handle === picture.handle)?.name ?? picture.name;

  // ---- what the model offers
  function offer(model) {
    if (offered === model.handle) return;
    offered = model.handle;
    if (linked) Object.assign(look, readLink(linked, model, { mode: MODES, rule: RULES, front: FRONTS, check: CHECKS }));
    const wanted = model.match.facet;
    const option = (value, words) => h("option", { value }, words);
    const noun = model.layer_noun === "block" ? "Block" : "Stage";
    facet.replaceChildren(...model.facets.map((name) => option(name, { token: "Tokens", key: "Keys", query: "Queries", value: "Values" }[name] + (name === wanted ? " (default)" : ""))));
    layer.replaceChildren(...Array.from({ length: model.layers }, (_, i) => option(i - model.layers, `${noun} ${i + 1}`)).reverse());
    sizes.replaceChildren(...model.sizes.map(([px, words]) => option(px, words)));
    showSettings();
    listModels();
  }
  function showSettings() {
    const { model } = session.facts;
    const now = featuresOf(model);
    facet.value = now.facet;
    layer.value = String(now.layer - model.layers);
    sizes.value = String(now.size);
    place.firstChild.checked = !look.position;
    for (const [choice, value] of [[mode, look.mode], [rule, look.rule], [front, look.front], [check, look.check]]) choice.press(value);
    lines.value = look.lines;
    leave.value = look.leave;
  }

  function listModels() {
    const wanted = linked?.get("other");
    linked = null;
    if (wanted && !other.model) other.choose(wanted);
    other.offers();
  }

  function keepNow() { // the address leads back to what is on screen
    if (element.offsetParent !== null && !other.isOpening) keepLink(look, first(), other.model?.source);
  }

  // ---- drawing
  const query = () => look.hover ?? look.pin;

  function draw() {
    if (!main.result) return;
    let heat = null;
    for (const view of active()) if (view.result) heat = drawView(view) ?? heat;
    say(heat);
    keepNow();
  }
  function drawView(view) {
    const { result } = view;
    const found = matchesOf(result, look);
    const asked = look.mode === "heat" ? inOther(query(), main.result, result) : null;
    const heat = asked && scaled(heatOf(result, asked, look.leave));
    view.draw({ mode: look.mode, ...found, low: lowestOf(found), line: view === main ? look.line : null, query: asked, heat,
      crop: view === main && look.mode === "heat" && crop?.box && isPinned(crop) ? crop : null, truth: result.arrays.true ?? null });
    const device = `${seconds(result.facts.time_s)} on ${result.facts.device}`;
    view.caption.replaceChildren(...(other.model ? [h("b", {}, result.model.name), ` ${result.model.layer_noun} ${result.facts.layer + 1}, ${result.facts.size} px · ${RULES[look.rule].toLowerCase()}, ${found.shown.length} of ${found.all.length} matches from ${lowestOf(found).toFixed(3)}${rightWords(result.facts.known)} · ${device}`] : []));
    return view === main ? heat : null;
  }
  const leastOf = ({ scores }, matches) => (matches.length ? Math.min(...matches.map((match) => scores[match])) : 0);
  const lowestOf = (found) => Math.min(0.99, leastOf(found, found.shown)); // colours go from here to 1
  function scaled(heat) { // its own range, the lowest twentieth cut: cosines of patches lie close together
    const values = heat.order.map((patch) => heat.values[patch]);
    return { ...heat, high: values[0] ?? 1, low: values[Math.floor(0.95 * (values.length - 1))] ?? 0 };
  }
  const rightWords = (known) => (known && known[look.rule]["acc@1"] !== null ? ` · ${known[look.rule]["acc@1"].toFixed(0)} % right within 1` : "");
  const isPinned = (what) => look.pin && what.of === main.shown?.name && what.side === look.pin.side && what.patch === look.pin.patch;
  const spot = (frame, patch) => `${Math.floor(patch / frame.columns)}, ${patch % frame.columns}`;

  function say(heat) {
    const { result } = main;
    const { facts, frames, arrays } = result;
    const found = matchesOf(result, look);
    const shownLow = look.low ?? leastOf(found, found.all);
    showSettings();
    low.range(Math.floor(100 * Math.min(leastOf(found, found.all), look.low ?? 1, 0.99)), 100);
    low.value = look.low === null ? low.input.min : Math.round(100 * look.low);
    const asked = query();
    drawRamp(ramp, heat ? cividis : viridis);
    lowest.textContent = (heat ? heat.low : lowestOf(found)).toFixed(heat ? 2 : 3);
    highest.textContent = `${(heat ? heat.high : 1).toFixed(2)} cosine`;
    const noun = look.rule === "mutual" ? "mutual matches" : "matches";
    counted.textContent = heat ? `patch ${spot(frames[asked.side], asked.patch)} of ${asked.side.toUpperCase()}` : `${count(found.shown.length)} of ${count(found.all.length)} ${noun}`;
    leave.node.hidden = !result.same;
    const grids = ["a", "b"].map((side) => `${side.toUpperCase()} ${facts[`frame_${side}`].width}×${facts[`frame_${side}`].height} px, ${frames[side].rows}×${frames[side].columns} patches`);
    told.textContent = `${RULE_WORDS[look.rule]} ${arrays.true ? "Dashed lines are off by more than one patch, or end where B shows nothing. " : ""}No loss of this method is on patches: what they match is a by-product of training. ` +
      `Pictures are read whole: ${grids.join("; ")}. ${seconds(facts.time_s)} on ${facts.device}.`;
    for (const [name, words] of Object.entries(FRONTS)) front.button(name).title = words;
    showKnown(facts.known);
    const whose = other.model ? ` · ${result.model.name}` : "";
    const words = (i, patches) => [spot(frames.a, patches[2 * i]), spot(frames.b, patches[2 * i + 1])];
    if (look.mode === "matches") {
      drawHistogram(chart, { title: `Scores of all ${noun}`, scores: found.all.map((match) => found.scores[match]), low: lowestOf(found), count: found.shown.length, meta: `cosine${whose}` });
      const off = (match) => (arrays.true ? offBy(found.patches, match, arrays.true, frames.b.columns) : null);
      drawTable(table, {
        title: "Strongest matches", meta: `patch row, column${whose}`, head: ["Rank", "A", "B", "Cosine", ...(arrays.true ? ["Off by"] : [])],
        rows: found.shown.slice(0, TABLE_ROWS).map((match, i) => [i + 1, ...words(match, found.patches), found.scores[match].toFixed(3), ...(arrays.true ? [off(match) ?? "not in B"] : [])]),
        empty: look.low !== null && found.all.length ? "No match has this score; lower the smallest score." : "No patches match by this rule.",
        chosen: look.line, onchoose: (i) => { if (look.line !== i) { look.line = i; draw(); } },
      });
    } else {
      const there = heat && heat.side;
      drawTable(chart, {
        title: heat ? `Nearest patches in ${there.toUpperCase()}` : "Nearest patches", meta: `row, column${whose}`, head: ["Rank", "Patch", "Cosine"],
        rows: heat ? heat.order.slice(0, TABLE_ROWS).map((patch, i) => [i + 1, spot(frames[there], patch), heat.values[patch].toFixed(3)]) : [],
        empty: heat ? "No patch lies outside the part that is left out; lower it." : "Hover over a picture, or click a patch to keep it. Arrow keys move it.",
      });
      showMemories();
    }
    const line = look.mode === "matches" && look.line !== null ? found.shown[look.line] : undefined;
    const sentence = heat && heat.order.length
      ? `Patch ${spot(frames[asked.side], asked.patch)} of ${asked.side.toUpperCase()}: nearest in ${heat.side.toUpperCase()} at ${spot(frames[heat.side], heat.order[0])}, cosine ${heat.values[heat.order[0]].toFixed(3)}`
      : line !== undefined ? `${words(line, found.patches).join(" in A matches ")} in B, cosine ${found.scores[line].toFixed(3)}` : `${counted.textContent}, ${result.names.a} and ${result.names.b}`;
    for (const side of ["a", "b"]) for (const view of active()) {
      if (view.result) view.stages[side].overlay.setAttribute("aria-label", `Picture ${side.toUpperCase()}, ${result.names[side]}. ${sentence}. Enter or arrow keys choose a patch.`);
    }
    if (!look.hover) {
      live.textContent = sentence;
      command.text = commandOf(result, look, found.shown.length);
    }
  }

  function showKnown(figures) {
    redraw.hidden = look.check === "none" || look.check === "mirror";
    known.hidden = !figures;
    swap.disabled = Boolean(figures);
    for (const button of fills.node.children) button.disabled = Boolean(figures);
    for (const control of [low.input, lines.input, ...rule.node.children, ...front.node.children]) control.disabled = look.mode === "heat";
    if (main.result.model.no_attention) front.button("attention").disabled = true;
    if (!figures) return;
    const cells = (name) => ["acc@0", "acc@1", "acc@2"].map((key) => { const value = figures[name][key]; return value === null ? "none" : `${value.toFixed(value < 10 ? 1 : 0)} %`; });
    const cover = figures.mutual.coverage;
    drawTable(known, {
      title: "Right by the known answer", meta: `of ${count(figures.n_valid)} patches that B shows`, head: ["Within", "0 patches", "1", "2"],
      rows: [["Nearest patch", ...cells("nearest")], [`Mutual, ${cover.toFixed(0)} % covered`, ...cells("mutual")], ["One way, as drawn", ...cells("argmax")], ["Chance", ...cells("chance")]],
    });
  }

  function showMemories() {
    const { memory } = main.result.model;
    const parts = { title: "Nearest memories of this crop", meta: crop?.space ? `${crop.space} space` : "" };
    if (!memory) {
      const give = session.facts.public ? null : h("button", { type: "button", class: "btn", onclick: () => doors.remember() }, "Give it a memory");
      memoryTiles(table, { ...parts, meta: "", text: "This model has no memory.", action: give });
    } else if (!look.pin) memoryTiles(table, { ...parts, text: "Click a patch: the part of the picture around it is compared with the memory." });
    else memoryTiles(table, { ...parts, rows: crop && isPinned(crop) ? crop.rows : null, old: crop?.rows ?? crop?.old, problem: crop?.problem });
  }
  async function wake() { // the memories nearest to the crop around the pinned patch
    if (!look.pin || !main.result?.model.memory || (crop && isPinned(crop))) return;
    const { side, patch } = look.pin;
    const { question, name: of } = main.shown;
    const mine = crop = { ...crop, of, side, patch, box: null, old: crop?.rows ?? crop?.old, rows: null, problem: null };
    const answer = await line.ask({ ...question, side, patch }, { event: "remembered" });
    if (crop !== mine) return;
    crop = answer.error ? { of, side, patch, problem: answer.error } : { of, side, patch, ...answer };
    draw();
  }

  // ---- choosing
  function setHover(view, side, patch) {
    look.hover = patch === null || !view.result ? null : inOther({ side, patch }, view.result, main.result);
    draw();
  }
  function pin(view, side, patch) {
    look.mode = "heat";
    mode.press("heat");
    look.pin = inOther({ side, patch }, view.result, main.result);
    wake();
    draw();
  }
  function unpin() {
    look.pin = look.hover = crop = null;
    draw();
  }
  function swapPictures() {
    const { a, b } = session.pair;
    session.pair = { a: b, b: a };
    session.handle = b;
    session.problem = null;
    session.tell();
  }
  const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Enter: [0, 0] };
  function onKey(view, side, event) {
    if (!view.result || event.ctrlKey || event.metaKey || event.altKey) return;
    const frame = main.result.frames[side];
    if (event.key === "Escape") {
      look.mode = "matches";
      mode.press("matches");
      unpin();
    } else if (event.key in MOVES) {
      const [down, right] = MOVES[event.key];
      const found = matchesOf(main.result, look);
      const start = found.shown.length ? found.patches[2 * found.shown[0] + (side === "b")] : Math.floor((frame.rows * frame.columns) / 2);
      const from = look.pin?.side === side ? look.pin.patch : start;
      const clamp = (value, most) => Math.min(most - 1, Math.max(0, value));
      const isFirst = look.pin?.side !== side;
      const row = clamp(Math.floor(from / frame.columns) + (isFirst ? 0 : down), frame.rows);
      pin(main, side, row * frame.columns + clamp((from % frame.columns) + (isFirst ? 0 : right), frame.columns));
    } else return;
    event.preventDefault();
  }

  // ---- states
  let slow;
  function showState() {
    clearTimeout(slow);
    const { facts } = session;
    const nothing = facts.state !== "ready" || !session.pair.a || !session.pair.b;
    view.hidden = nothing;
    exports.node.hidden = nothing;
    state.hidden = !nothing;
    fills.press(session.side);
    const busy = active().find((one) => one.asked);
    for (const button of [png, csv]) button.disabled = !main.result;
    npz.classList.toggle("off", !main.result);
    if (main.result) npz.href = `api/matches/${main.result.key}/npz`;
    stages.classList.toggle("compared", Boolean(other.model));
    beside.node.parentNode.hidden = !other.model;
    stages.classList.toggle("empty", !main.result);
    stages.classList.remove("old");
    loading.hidden = true;
    if (nothing) {
      state.replaceChildren(...(facts.state === "failed" ? [note(facts)] : [h("p", {}, facts.state === "starting" ? "Opening the model" : "Choose two pictures above."),
        h("p", { class: "meta" }, "The matches appear by themselves.")]));
    } else if (busy) slow = setTimeout(() => showLoading(busy), 150);
  }
  function showLoading(busy) { // nothing below 150 ms
    if (!busy.asked) return;
    loading.hidden = false;
    stages.classList.toggle("old", Boolean(main.result));
    const name = busy === main ? session.facts.model.name : other.model?.name ?? "";
    loading.replaceChildren(h("div", { class: "line spread" }, h("span", {}, `Running ${name} on both pictures`), h("span", { class: "meta" }, `${((performance.now() - busy.asked.since) / 1000).toFixed(1)} s`)),
      h("span", { class: "meta" }, main.result ? "The previous result stays until the new one is there." : "The matches appear here."));
    slow = setTimeout(() => showLoading(busy), 100);
  }

  // ---- taking away
  function saveCsv() { // what is on screen
    const heat = look.mode === "heat" && query() ? heatOf(main.result, query(), look.leave) : null;
    save(new Blob([csvOf(main.result, matchesOf(main.result, look), heat)], { type: "text/csv" }), fileName(main.result, "csv"));
  }

  new ResizeObserver(() => draw()).observe(stages);
  whileVisible(element, () => {
    exports.place();
    for (const side of ["a", "b"]) {
      const gone = !session.pictures.some((picture) => picture.handle === session.pair[side]);
      if (gone && session.pictures.length) session.pair[side] = session.pictures.at(-1).handle; // an upload that made room for later ones
    }
    wish();
  });
}
