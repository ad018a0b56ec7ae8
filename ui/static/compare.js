// The tab Compare: two models, or two checkpoints of a run. First the pictures whose neighbours changed most, then the
// maps and memories of both for the chosen picture. Blocks, heads, opacity and the divider make no request.

import { questions } from "./asking.js";
import { commandOf, csvOf } from "./comparefiles.js";
import { keepLink, readLink } from "./comparelink.js";
import { mapOverlap, mapsView } from "./comparemaps.js";
import { memoriesSection } from "./comparememories.js";
import { sizeChoice, sizesOfBoth } from "./comparesize.js";
import { commandLine, count, h, icon, loadPhoto, note, rested, save, seconds, segmented, slider, stemOf, toggle } from "./dom.js";
import { exportsRow } from "./exports.js";
import { framed, framedAt } from "./frame.js";
import { shortcuts } from "./keys.js";
import { quantile, strongest } from "./maps.js";
import { opening } from "./opening.js";
import { otherModel } from "./othermodel.js";
import { probeSection } from "./probe.js";
import { session, whileVisible } from "./session.js";
import { chooseFile, giveFile } from "./tray.js";
import { attentionMaps, unpack } from "./wire.js";

const CLIP = 0.995;
const FLAT = 2; // colours end at so many times uniform at least: where all patches weigh alike none is to look strong
const LINK_MS = 200;
const LIST_MS = 1000;
const SLOW_MS = 150; // nothing is said of what comes sooner
const SIDES = ["a", "b"];
const KEYS = [
  [["←", "→", "↑", "↓"], "Move the query patch, on a map"], [["[", "]"], "Attention head, on a map"], [[",", "."], "Block, on a map"],
  [["C", "Esc"], "Back to the whole picture's query, on a map"], [["O"], "Opacity"], [["?"], "This list"]];
const MODES = { beside: "Side by side", slider: "Under a slider" };
const PLAIN = { mode: "beside", split: 50, opacity: 85, shared: true, size: null, from: "a" };
const percent = (share) => `${(100 * share).toFixed(0)} %`;
const letter = (side) => side.toUpperCase();

export function mount({ element, props, trigger, watch }) {
  const look = { ...PLAIN, place: null, hover: null };
  // per side: layer and head that were chosen (null: the last block, the mean; b follows a where it can), the question
  // under way, what is on screen, why the last question failed, a patch out of the address
  const of = Object.fromEntries(SIDES.map((side) => [side, { layer: null, head: null, asked: null, shown: null, problem: null, patch: null, offered: null }]));
  let linked = session.link.get("tab") === "compare" ? session.link : null; // not yet restored
  let pictureOf = null; // the tray's picture that the query's place belongs to
  let listed = { source: null, at: 0 }; // what suggestions were made for, and when
  const line = questions({ props, trigger, watch });

  // ---- what stands where
  const other = otherModel({ id: "compare-sources", changed: () => { of.b.shown = of.b.asked = of.b.problem = null; wish(); }, busy: showState });
  const nameA = h("div", { class: "named" });
  const swap = h("button", { type: "button", class: "btn", onclick: swapModels }, icon("swap"), "Swap");
  const none = h("button", { type: "button", class: "btn quiet", onclick: () => { if (other.isOpening) other.cancel(); else other.choose(""); other.input.focus(); } }, "Clear");
  const models = h("div", { class: "models", role: "group", "aria-label": "The two models" },
    h("div", { class: "fld" }, h("span", { class: "lab" }, "A, shown now"), nameA),
    h("div", { class: "fld" }, h("span", { class: "lab" }, "B, compare with"), h("div", { class: "line" }, other.input, other.sources, swap, none), other.said));
  const offers = h("div", { class: "offers" });
  const probe = probeSection({ ask: (question) => line.ask(question), look: seeMaps, changed: () => { writeCommand(); keepNow(); } });
  const memories = memoriesSection({ ask: (question) => line.ask(question) });

  const maps = mapsView({ pick, hover, key: onKey, split: (percent) => { look.split = percent; divider.value = percent; draw(); } });
  const mode = segmented("Show", Object.entries(MODES), look.mode, (name) => { look.mode = name; draw(); });
  const query = segmented("Query", [["whole", "Class token"], ["patch", "Patch"]], "whole", (kind) => { look.place = kind === "whole" ? null : look.place ?? placeOfStrongest(); wish(); draw(); });
  const opacity = slider("Opacity", { min: 0, max: 100, value: look.opacity, oninput: (v) => { look.opacity = v; draw(); } });
  const sizes = sizeChoice(setSize);
  const shared = toggle("Same scale for both", true, (on) => { look.shared = on; draw(); });
  const divider = slider("Divider", { min: 0, max: 100, value: look.split, words: (v) => `A ${v} %, B ${100 - v} %`, oninput: (v) => { look.split = v; draw(); } });
  const common = h("b");
  const commonWords = h("span", { class: "meta" });
  const choose = Object.fromEntries(SIDES.map((side) => [side, chooser(side)]));
  const keys = shortcuts("compare-keys", { list: KEYS, actions: { o: () => opacity.input.focus() }, arrowsOf: null, isOn: () => element.offsetParent !== null });
  const mapSection = h("section", { class: "onpicture", "aria-label": "Maps" },
    h("div", { class: "head" }, h("h2", {}, "On this picture"), h("span", { class: "meta" }, "attention weight, as a multiple of uniform"),
      h("button", { type: "button", class: "btn quiet keysbtn", "aria-haspopup": "dialog", onclick: keys.show }, "Keys", h("kbd", {}, "?"))),
    h("div", { class: "toolbar" }, mode.node, h("div", { class: "fld" }, h("span", { class: "lab" }, "Query"), query.node), shared, opacity.node),
    h("div", { class: "toolbar" }, sizes.node, h("div", { class: "common" }, h("span", { class: "lab" }, "Overlap of the maps"), common, commonWords)),
    h("div", { class: "two" }, SIDES.map((side) => choose[side].node)), maps.node);
  maps.figures.a.node.append(divider.node);
  const command = commandLine();
  const live = h("div", { class: "quiet-live", "aria-live": "polite" });
  const both = h("div", { class: "both" }, probe.node, mapSection, memories.node, command.node, live);
  const state = h("div", { class: "blank", hidden: true });
  element.append(h("div", { class: "cmp" }, models, offers, both, state), keys.dialog);
  const png = h("button", { type: "button", class: "btn", onclick: () => maps.picture().toBlob((blob) => save(blob, fileName("png")), "image/png") }, "PNG");
  const csv = h("button", { type: "button", class: "btn", onclick: () => save(new Blob([csvOf(SIDES.map(taken).filter(Boolean))], { type: "text/csv" }), fileName("csv")) }, "CSV");
  const exports = exportsRow({ tray: "tray-compare", below: command.node, keepLink: keepNow, buttons: [png, csv] });

  function chooser(side) {
    const title = h("b");
    const one = (name, label) => h("select", { "aria-label": `${label} of ${letter(side)}`, onchange: (event) => { of[side][name] = name === "head" ? headOf(event.target.value) : Number(event.target.value); draw(); } });
    const [block, head] = [one("layer", "Block"), one("head", "Head")];
    return { node: h("div", { class: "side" }, h("span", { class: "letter" }, letter(side)), title, block, head), title, block, head };
  }
  const headOf = (word) => (word === "mean" || word === "max" ? word : Number(word));

  // ---- the two models
  const modelOf = (side) => (side === "a" ? session.facts.model : other.model);
  const hasMaps = (side) => Boolean(modelOf(side) && !modelOf(side).no_attention);
  const layers = (side) => modelOf(side).blocks ?? modelOf(side).layers;
  const hasHead = (side, head) => head !== null && (typeof head !== "number" || head < modelOf(side).heads);
  const usual = { // where nothing was chosen, or what this model has not
    layer: (side) => (side === "b" && hasMaps("a") && layers("a") === layers("b") ? layerOf("a") : layers(side) - 1),
    head: (side) => (side === "b" && hasMaps("a") && hasHead("b", headChosen("a")) ? headChosen("a") : "mean"),
  };
  function layerOf(side) {
    const chosen = of[side].layer;
    return chosen !== null && chosen < layers(side) ? chosen : usual.layer(side);
  }
  const headChosen = (side) => (hasHead(side, of[side].head) ? of[side].head : usual.head(side));
  // the input size: the chosen one if both can read it, else null and each its own
  const sizeNow = () => (SIDES.every(hasMaps) && sizesOfBoth(...SIDES.map(modelOf)).includes(look.size) ? look.size : null);
  const sizeOf = (side) => sizeNow() ?? modelOf(side).size;
  // [query, words] for the picture as a whole, which both can be asked
  function whole() {
    const theirs = SIDES.filter(hasMaps).map((side) => modelOf(side).whole);
    return theirs.find(([name]) => name === "mean") ?? theirs[0] ?? ["cls", "class token"];
  }
  function swapModels() {
    const { model } = session.facts;
    const chosen = SIDES.map((side) => ({ patch: of[side].patch, ...(hasMaps(side) ? { layer: layerOf(side), head: headChosen(side) } : { layer: null, head: null }) }));
    for (const [i, side] of SIDES.entries()) Object.assign(of[side], chosen[1 - i], { shown: null, asked: null, problem: null });
    look.from = look.from === "a" ? "b" : "a";
    session.use(other.swapped(model)); // it comes back as a change of the session
    for (const side of SIDES.filter(hasMaps)) for (const name of ["layer", "head"]) if (of[side][name] === usual[name](side)) of[side][name] = null;
    draw();
  }
  function seeMaps(file) { // of a picture of the probe set
    giveFile(file);
    mapSection.scrollIntoView();
  }
  function offerChoices(side) {
    const model = modelOf(side);
    const { title, block, head } = choose[side];
    if (of[side].offered !== model.handle) {
      of[side].offered = model.handle;
      title.textContent = model.name;
      title.title = model.name;
      const option = (value, words) => h("option", { value }, words);
      block.hidden = head.hidden = !hasMaps(side);
      if (!hasMaps(side)) return;
      block.replaceChildren(...Array.from({ length: layers(side) }, (_, i) => option(i, `Block ${i + 1}`)));
      head.replaceChildren(option("mean", "Mean"), option("max", "Max"), ...Array.from({ length: model.heads }, (_, i) => option(i, `Head ${i + 1}`)));
    }
    if (!hasMaps(side)) return;
    block.value = String(layerOf(side));
    head.value = String(headChosen(side));
  }

  async function suggest() { // what can stand beside the shown model, one click each
    const { source, name } = session.facts.model;
    listed = { source, at: performance.now() };
    const groups = await other.offers();
    if (listed.source !== source || !groups) return;
    const row = (one) => h("li", {}, h("button", { type: "button", class: "row", onclick: () => other.choose(one.source) }, h("b", {}, one.title), one.words ? h("span", { class: "meta" }, one.words) : null));
    offers.replaceChildren(h("p", {}, `Choose what ${name} is compared with: its source above, or one of these.`),
      h("div", { class: "groups" }, groups.map((group) => h("section", { "aria-label": group.title }, h("h3", {}, group.title), h("ul", {}, group.rows.map(row))))));
  }

  // ---- asking
  function wish() {
    const { model } = session.facts;
    const awaited = linked && opening.now && session.link.has("model") && session.link.get("model") !== model?.source; // of the link
    if (session.ready && session.handle && !awaited) {
      if (linked) restore();
      if (pictureOf !== null && pictureOf !== session.handle) look.place = of.a.patch = of.b.patch = null; // a place of the picture before
      pictureOf = session.handle;
      const isOld = !other.model && performance.now() - listed.at > LIST_MS; // a run has gone on meanwhile
      if (listed.source !== model.source || isOld) suggest();
      if (other.model) {
        for (const side of SIDES) {
          offerChoices(side);
          if (hasMaps(side)) bringMaps(side);
          else of[side].shown = of[side].asked = of[side].problem = of[side].patch = null;
        }
        memories.bring(model, other.model);
        probe.use(model, other.model);
      }
      keepNow();
    }
    showState();
  }

  // where patches lie at the size that is now asked for
  const frameOf = (side, shown) => (shown.size === sizeOf(side) ? shown.frame : framedAt(shown.maps.facts.frame, sizeOf(side)));
  const isOf = (shown, model) => shown && shown.model.handle === model.handle && shown.handle === session.handle;
  function bringMaps(side) {
    const one = of[side];
    const model = modelOf(side);
    const here = isOf(one.shown, model) ? one.shown : null; // whose frame tells which patch is meant
    if (here && one.patch !== null && one.patch < here.maps.patches) look.place = middle(here, one.patch);
    if (here) one.patch = null;
    const patch = look.place && here ? frameOf(side, here).at(...look.place) : null;
    const [query, words] = whole();
    const question = { ask: `maps_${side}`, model: model.handle, handle: session.handle, query: patch ?? query, size: sizeOf(side) };
    const name = JSON.stringify(question);
    if ([one.asked?.name, !one.asked && one.shown?.name, one.problem?.name].includes(name)) return;
    one.asked = { name, words, since: performance.now() };
    one.problem = null;
    answerOf(side, model, question, one.asked);
  }
  async function answerOf(side, model, question, mine) {
    const one = of[side];
    try {
      const answer = await line.ask(question);
      if (one.asked !== mine || !answer) return;
      if (answer.error) throw answer.error;
      const [response, photo] = await Promise.all([fetch(`api/attention/${answer.key}`), loadPhoto(question.handle)]);
      if (!response.ok) throw { title: "The maps did not arrive.", text: (await response.json()).error };
      const found = attentionMaps(unpack(await response.arrayBuffer()));
      if (one.asked !== mine) return;
      one.asked = null;
      one.shown = { name: mine.name, model, handle: question.handle, query: question.query, size: question.size, whole: mine.words, maps: found, frame: framed(found.facts.frame), photo };
      showPhoto(side);
    } catch (error) {
      if (one.asked !== mine) return;
      one.asked = one.shown = null;
      one.problem = { name: mine.name, ...(error.title ? error : { title: "The maps did not arrive.", text: error.message || "Try again." }) };
    }
    wish(); // a patch may be meant whose place is only now known
    draw();
  }
  const showPhoto = (side) => maps.show(side, of[side].shown.photo);

  // ---- the address leads back to what is on screen
  const lead = () => (hasMaps(look.from) ? look.from : hasMaps("a") ? "a" : "b"); // the side whose patch is meant
  function restore() {
    const { look: seen, a, b, patch, probe: set, other: source } = readLink(linked, PLAIN, MODES);
    linked = null;
    Object.assign(look, seen);
    Object.assign(of.a, a);
    Object.assign(of.b, b);
    of[look.from === "b" ? "b" : lead()].patch = patch; // B may not be open yet
    [divider.value, opacity.value, shared.firstChild.checked] = [look.split, look.opacity, look.shared];
    if (set) probe.restore(set);
    if (source) other.choose(source);
  }
  function keepNow() {
    if (element.offsetParent === null || linked || opening.now || other.isOpening || (of.a.patch ?? of.b.patch) !== null) return;
    const { shown } = of[lead()];
    const told = (side, name, now) => (other.model && hasMaps(side) && now(side) !== usual[name](side) ? now(side) : null);
    const [a, b] = SIDES.map((side) => ({ layer: told(side, "layer", layerOf), head: told(side, "head", headChosen) }));
    keepLink({ ...look, from: lead(), size: sizeNow() }, PLAIN, { a, b, patch: look.place && shown ? frameOf(lead(), shown).at(...look.place) : null, probe: probe.shown, other: other.model?.source });
  }
  const keepSoon = rested(LINK_MS, keepNow); // browsers take an address changed with each step of a slider amiss

  // ---- drawing
  const onScreen = (side) => (other.model && hasMaps(side) && of[side].shown?.model.handle === modelOf(side).handle ? of[side].shown : null);
  const middle = ({ frame }, patch) => { const [x0, y0, x1, y1] = frame.box(patch); return [(x0 + x1) / 2, (y0 + y1) / 2]; };
  const rounded = (times) => (times >= 99.95 ? count(times) : times.toFixed(1));

  function draw() {
    if (!other.model || !both.offsetParent) return;
    const views = Object.fromEntries(SIDES.map((side) => [side, viewOf(side)]));
    const highest = Math.max(...SIDES.map((side) => views[side]?.times ?? 0));
    for (const side of SIDES) {
      offerChoices(side);
      const view = views[side];
      if (!view) continue;
      if (look.shared) view.max *= highest / view.times;
      view.words = highWords(look.shared ? highest : view.times);
    }
    const isSlider = look.mode === "slider" && Boolean(views.a && views.b);
    if (isSlider && !look.shared) views.a.words = `A ${rounded(views.a.times)} ×, B ${rounded(views.b.times)} ×`;
    for (const side of SIDES) say(side, views[side]);
    if (isSlider) sayBoth(views);
    maps.draw({ mode: isSlider ? "slider" : "beside", split: look.split, maps: views });
    mode.press(isSlider ? "slider" : "beside");
    mode.button("slider").disabled = !(hasMaps("a") && hasMaps("b"));
    divider.node.hidden = !isSlider;
    sizes.node.hidden = !SIDES.every(hasMaps);
    if (!sizes.node.hidden) sizes.show(SIDES.map(modelOf), SIDES.map((side) => onScreen(side)?.maps.facts.frame), sizeNow());
    query.press(look.place ? "patch" : "whole");
    for (const button of query.node.children) button.disabled = !(views.a ?? views.b);
    if (!of.a.asked && !of.b.asked) showOverlap(views); // until both are there the old number stays
    writeCommand();
    keepSoon();
  }
  function showOverlap(views) {
    const overlap = views.a && views.b ? mapOverlap(views.a, views.b) : null;
    common.textContent = overlap === null ? "none" : percent(overlap);
    commonWords.textContent = overlap === null ? "" : "of the weight lies on the same places";
    const told = SIDES.filter((side) => views[side]).map((side) => views[side].sentence).join(". ");
    const words = overlap === null ? told : `${told}. Overlap ${common.textContent}`;
    if (live.textContent !== words) live.textContent = words;
  }
  const highWords = (times) => (times > FLAT ? `${rounded(times)} × (99.5 %)` : `${rounded(times)} ×`);
  // What `drawOverlay` takes, with the number that its colours end at: `max` as a weight, `times` as a multiple of uniform
  function viewOf(side) {
    const shown = onScreen(side);
    if (!shown) return null;
    const { maps: found, frame, query: asked } = shown;
    const [layer, head] = [layerOf(side), headChosen(side)];
    const weights = found.map(layer, head);
    const max = Math.max(quantile([weights], CLIP), FLAT / found.patches);
    const headWords = typeof head === "number" ? `head ${head + 1}` : head;
    const isPatch = typeof asked === "number";
    const from = isPatch ? `patch ${Math.floor(asked / found.columns)}, ${asked % found.columns}` : shown.whole;
    const peak = strongest(weights);
    const name = `${letter(side)} · Block ${layer + 1} · ${headWords}`;
    return { weights, rows: found.rows, columns: found.columns, frame, max, times: max * found.patches, opacity: look.opacity / 100, on: null, query: isPatch ? asked : null,
      hover: look.hover && isOf(shown, modelOf(side)) ? frame.at(...look.hover) : null, name, from, peak,
      sentence: `${name} · from ${from}: strongest at row ${Math.floor(peak / found.columns)}, column ${peak % found.columns}, ${rounded(weights[peak] * found.patches)} times uniform` };
  }
  function say(side, view) {
    const figure = maps.figures[side];
    figure.tag.textContent = view?.name ?? letter(side);
    figure.read.textContent = figure.best.textContent = "";
    if (!view) return;
    const { facts, rows, columns, patches } = of[side].shown.maps;
    const at = view.hover ?? view.peak;
    figure.read.textContent = `${rows}×${columns} patches of ${facts.frame.patch_px} px · from ${view.from} · ${seconds(facts.time_s)} on ${facts.device}`;
    figure.best.textContent = `${view.hover === null ? "strongest at " : ""}row ${Math.floor(at / columns)}, column ${at % columns}: ${rounded(view.weights[at] * patches)} ×`;
    if (view.hover === null) figure.overlay.setAttribute("aria-label", `Attention map of model ${view.sentence}. Arrow keys move the query patch.`);
  }
  function sayBoth(views) { // under the one picture that both maps lie on
    const { a, b } = maps.figures;
    for (const name of ["read", "best"]) a[name].textContent = `A: ${a[name].textContent}; B: ${b[name].textContent}`;
    if (views.a.hover === null) a.overlay.setAttribute("aria-label", `Attention maps of two models, parted by the divider. ${views.a.sentence}. ${views.b.sentence}. Arrow keys move the query patch.`);
  }

  const again = (forget) => h("button", { type: "button", class: "btn small", onclick: () => { forget(); wish(); } }, "Try again");

  // ---- choosing
  function placeOfStrongest() {
    const side = onScreen("a") ? "a" : "b";
    const shown = onScreen(side);
    look.from = side;
    return shown ? middle(shown, strongest(shown.maps.map(layerOf(side), headChosen(side)))) : null;
  }
  function pick(side, x, y) { // the middle of the patch that was meant, so that both models are asked the same place
    const shown = onScreen(side);
    const patch = shown?.frame.at(x, y) ?? null;
    if (patch === null) return;
    look.place = middle(shown, patch);
    look.from = side;
    wish();
    draw();
  }
  function setSize(size) {
    look.size = size;
    const { shown } = of[lead()];
    if (look.place && shown) { // the middle of a patch again
      const frame = frameOf(lead(), shown);
      look.place = middle({ frame }, frame.at(...look.place));
    }
    wish();
  }
  function hover(side, x, y) {
    const before = look.hover;
    const patch = x === null ? null : onScreen(side)?.frame.at(x, y) ?? null;
    look.hover = patch === null ? null : middle(onScreen(side), patch);
    if (String(before) !== String(look.hover)) draw();
  }
  const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  function onKey(side, event) {
    const shown = onScreen(side);
    if (!shown || event.ctrlKey || event.metaKey || event.altKey) return;
    const { rows, columns } = shown.maps;
    const clamp = (value, most) => Math.min(most, Math.max(0, value));
    const step = { "[": -1, "]": 1 }[event.key];
    if (event.key in MOVES) {
      const [down, right] = MOVES[event.key];
      const from = shown.frame.at(...(look.place ?? placeOfStrongest()));
      const to = clamp(Math.floor(from / columns) + down, rows - 1) * columns + clamp((from % columns) + right, columns - 1);
      pick(side, ...middle(shown, to));
    } else if (event.key === "Escape" || event.key.toLowerCase() === "c") {
      look.place = null;
      wish();
    } else if (step) {
      const heads = ["mean", "max", ...Array.from({ length: modelOf(side).heads }, (_, i) => i)];
      of[side].head = heads[clamp(heads.indexOf(headChosen(side)) + step, heads.length - 1)];
    } else if (event.key === "," || event.key === ".") of[side].layer = clamp(layerOf(side) + (event.key === "." ? 1 : -1), layers(side) - 1);
    else return;
    event.preventDefault();
    draw();
  }

  // ---- states
  const slow = {};
  function showState() {
    const { facts } = session;
    const nothing = !session.ready || !session.handle;
    state.hidden = !nothing;
    models.hidden = nothing;
    offers.hidden = nothing || Boolean(other.model);
    both.hidden = nothing || !other.model;
    exports.node.hidden = nothing;
    swap.disabled = !other.model;
    none.hidden = !other.model && !other.isOpening;
    none.textContent = other.isOpening ? "Cancel" : "Clear";
    if (nothing) state.replaceChildren(...(facts.state === "failed" ? [note(facts)] : facts.state === "starting" ? [h("p", {}, "Opening the model"), h("p", { class: "meta" }, "It takes a few seconds.")]
      : [h("p", {}, "Choose a picture to compare two models on it."), h("button", { type: "button", class: "btn pri", onclick: chooseFile }, "Add a picture")]));
    else nameA.replaceChildren(h("b", {}, facts.model.name), h("span", { class: "meta" }, ` ${facts.model.line}`));
    png.disabled = csv.disabled = !SIDES.some(onScreen);
    const words = whole()[1];
    query.button("whole").textContent = words[0].toUpperCase() + words.slice(1);
    if (other.model && !nothing) for (const side of SIDES) showSide(side);
    draw();
  }
  function showSide(side) {
    const { asked, problem } = of[side];
    const { stage, loading, state: told, node } = maps.figures[side];
    const model = modelOf(side);
    clearTimeout(slow[side]);
    loading.hidden = true;
    stage.classList.remove("old");
    node.classList.toggle("nomaps", !hasMaps(side));
    told.hidden = hasMaps(side) && !problem;
    if (!hasMaps(side)) told.replaceChildren(h("p", {}, model.no_attention), h("p", { class: "meta" }, "Neighbours and memories are compared all the same."));
    else if (problem) told.replaceChildren(note(problem), again(() => { of[side].problem = null; }));
    if (asked) slow[side] = setTimeout(() => showLoading(side), SLOW_MS);
  }
  function showLoading(side) {
    const { asked, shown } = of[side];
    if (!asked) return;
    const { stage, loading } = maps.figures[side];
    loading.hidden = false;
    stage.classList.toggle("old", Boolean(shown));
    loading.replaceChildren(h("div", { class: "line spread" }, h("span", {}, `Running ${modelOf(side).name}`), h("span", { class: "meta" }, `${((performance.now() - asked.since) / 1000).toFixed(1)} s`)));
    slow[side] = setTimeout(() => showLoading(side), 100);
  }

  // ---- taking away
  const fileName = (suffix) => `${stemOf(session.picture?.name ?? "picture")}-compare.${suffix}`;
  const taken = (side) => onScreen(side) && { ...onScreen(side), side, layer: layerOf(side), head: headChosen(side) };
  function writeCommand() {
    if (other.model) command.text = commandOf(session.picture?.name ?? "picture.png", SIDES.map(modelOf), SIDES.map(taken), lead(), probe.shown);
  }

  new ResizeObserver(draw).observe(maps.node);
  whileVisible(element, () => {
    exports.place();
    wish();
  });
}
