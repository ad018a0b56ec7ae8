// The tab Search: what is most like one picture or several, in the model's memory or in a gallery of one's own.

import { get } from "./ask.js";
import { questions } from "./asking.js";
import { commandLine, count, h, icon, note, rested, save, seconds, segmented, shellWord, toggle } from "./dom.js";
import { foundTiles } from "./found.js";
import { galleries } from "./galleries.js";
import { opening, openModel } from "./opening.js";
import { doors, session, whileVisible, writeLink } from "./session.js";
import { chooseFile } from "./tray.js";
import { walkStrip } from "./walk.js";
import { unpack } from "./wire.js";

const COUNTS = [20, 50, 100];
const MOST = 8; // pictures that are combined, and that are to be unlike
const [ODD, NEAR] = [60, 10]; // odd ones that are shown, and the neighbours that tell them
const [REST_MS, SLOW_MS] = [400, 150];
const PLACES = { memory: "Memory space", embedding: "Embedding space", gallery: "Gallery" };
const SPACE_WORDS = { memory: "memory space", embedding: "embedding space" };

// A query is {handle} of a picture of the tray, or {id, place, name, thumb} of a result
const asAsked = ({ handle, id, place }) => (handle ? { handle } : { id, place });
const wordOf = ({ handle, id, place }) => handle ?? (place.kind === "gallery" ? `gallery:${place.name}:${id}` : `slot:${id}`); // as it stands in the address
const isIn = (list, one) => list.some((other) => wordOf(other) === wordOf(one));
const without = (list, one) => list.filter((other) => wordOf(other) !== wordOf(one));
const placeOf = (words) => (words?.startsWith("gallery:") ? { kind: "gallery", name: words.slice(8) } : words in SPACE_WORDS ? { kind: "memory", space: words } : null);
const named = (place) => (place.kind === "gallery" ? `gallery:${place.name ?? ""}` : place.space);
const wordsOf = (place) => (place.kind === "gallery" ? `gallery ${place.name}` : SPACE_WORDS[place.space]);
const below = (x, digits) => (Math.floor(x * 10 ** digits) / 10 ** digits).toFixed(digits); // so that what is at x is not cut off
const fileOf = (path) => path?.split("/").pop() || "";

export function mount({ element, props, trigger, watch, upload }) {
  const look = { place: { kind: "memory", space: "memory" }, k: COUNTS[0], exact: false, class_name: "", path: "", odd: false, fold: true };
  let queries = [];
  let less = [];
  let isAdding = false;
  let modelOf = null; // handle of the model that the rows among the queries belong to
  let followed = null; // the tray's picture that the query was last taken from
  let found = null; // the answer on screen: {stamp, key, question, model, hits, …}
  let asked = null; // {stamp}: the question under way
  let refused = null; // {stamp, error}
  let linked = session.link.get("tab") === "search" ? session.link : null;
  const line = questions({ props, trigger, watch });

  // ---- what stands where
  const shelf = galleries({ upload, chosen: (name) => goTo({ kind: "gallery", name }), deleted: (name) => { if (look.place.name === name) look.place = { kind: "gallery", name: null }; }, changed: () => { drawPlaces(); wish(); } });
  const places = segmented("Search in", Object.entries(PLACES), "memory", (which) => goTo(which === "gallery" ? { kind: "gallery", name: firstGallery() } : { kind: "memory", space: which }));
  const picker = h("select", { "aria-label": "Gallery", onchange: () => goTo({ kind: "gallery", name: picker.value }) });
  const manage = h("button", { type: "button", class: "btn", "aria-haspopup": "dialog", onclick: () => shelf.open(shelf.list.length || session.facts.public ? null : { how: "make" }) });
  const chips = h("div", { class: "chips", role: "group", "aria-label": "Query" });
  const lessChips = h("div", { class: "chips", role: "group", "aria-label": "Less like" });
  const add = h("button", { type: "button", class: "btn small", "aria-pressed": "false", onclick: () => { isAdding = !isAdding; drawQueries(); session.tell(); } }, icon("plus"), "Combine");
  const lessen = h("button", { type: "button", class: "btn small", onclick: () => { less = []; wish(); } }, "Clear");
  const between = h("button", { type: "button", class: "btn small", onclick: () => walk.go(end(queries[0]), end(queries[1])) }, "Walk between");
  const hint = h("span", { class: "meta" });
  const lessBox = h("div", { class: "line", hidden: true }, h("span", { class: "lab" }, "Less like"), lessChips, lessen);
  const show = segmented("Show", [["alike", "Most alike"], ["odd", "Oddest"]], "alike", (which) => { look.odd = which === "odd"; wish(); });
  const classes = h("datalist", { id: "search-classes" });
  const ofClass = h("input", { type: "text", list: classes.id, placeholder: "any", autocomplete: "off", spellcheck: "false", oninput: rested(REST_MS, () => filter(true)), onchange: () => filter() });
  const ofPath = h("input", { type: "text", placeholder: "any", autocomplete: "off", spellcheck: "false", oninput: rested(REST_MS, () => filter()) });
  const counts = segmented("How many", COUNTS.map((k) => [String(k), String(k)]), String(look.k), (k) => { look.k = Number(k); wish(); });
  const exact = toggle("Exact", false, (on) => { look.exact = on; wish(); });
  const fold = toggle("Fold near-duplicates", true, (on) => { look.fold = on; if (found) draw(); wish(); });
  const files = ["csv", "zip"].map((kind) => h("button", { type: "button", class: "btn", onclick: () => take(kind) }, kind.toUpperCase()));
  const field = (words, ...parts) => h("label", { class: "fld" }, h("span", { class: "lab" }, words), parts);
  const pathField = field("Path holds", ofPath);
  const filters = h("div", { class: "toolbar" }, show.node, h("div", { class: "fld" }, h("span", { class: "lab" }, "How many"), counts.node), field("Class", ofClass, classes), pathField, fold, exact, h("div", { class: "exports" }, files));
  const asking = h("section", { class: "asking", "aria-label": "What to search" },
    h("div", { class: "toolbar where" }, h("div", { class: "fld" }, h("span", { class: "lab" }, "Search in"), places.node), picker, manage),
    shelf.status,
    h("div", { class: "line queries" }, h("span", { class: "lab" }, "Query"), chips, add, between, hint), lessBox,
    filters);
  const problem = h("div", { class: "slot", "aria-live": "polite" });
  const actions = { again, both, less: lessLike, walk: (hit) => walk.go(end(queries[0]), end(asQuery(hit))), explain, can, queries: () => queries.map(end) };
  const clear = h("button", { type: "button", class: "btn", onclick: () => { ofClass.value = ofPath.value = ""; filter(); ofPath.focus(); } }, "Clear the filters");
  const tiles = foundTiles({ actions, name: "Results" });
  const walk = walkStrip({ ask: askWalk, actions, closed: () => title.focus() });
  const title = h("h2", { tabindex: "-1" });
  const meta = h("span", { class: "meta", role: "status" });
  const busy = h("div", { class: "load", role: "status", hidden: true });
  const results = h("section", { class: "results", "aria-label": "Results" }, h("div", { class: "head" }, title, meta), tiles.node, busy);
  const state = h("div", { class: "blank", hidden: true });
  const command = commandLine();
  const view = h("div", { class: "search" }, asking, problem, walk.node, results, state, command.node);
  element.append(view, shelf.node);
  doors.query = (handle, isMore) => {
    if (!isAdding && !isMore) {
      less = without(less, { handle });
      queries = [{ handle }];
      followed = handle;
      session.choose(handle); // it comes back as a change of the session
    } else if (isIn(queries, { handle })) {
      if (!isMore && queries.length > 1) drop(queries, { handle });
    } else if (queries.length < MOST) {
      [queries, less] = [[...queries, { handle }], without(less, { handle })];
      session.tell();
    }
  };
  doors.search = ({ slot, space, name, thumb }) => { // with a memory that another tab shows
    [followed, modelOf, linked] = [session.handle, session.facts.model.handle, null];
    look.place = { kind: "memory", space };
    asks([{ id: slot, place: look.place, name, thumb }], []);
  };
  doors.queried = () => ({ queries: queries.map((one) => one.handle).filter(Boolean), less: less.map((one) => one.handle).filter(Boolean) });

  // ---- where
  const firstGallery = () => (shelf.list.find((one) => one.fits && one.pictures) ?? shelf.list[0])?.name ?? null;
  const spaces = () => session.facts.model?.memory?.spaces ?? [];

  function goTo(place) {
    if (named(place) !== named(look.place)) {
      if (place.kind !== look.place.kind || place.kind === "gallery") look.class_name = ofClass.value = look.path = ofPath.value = "";
      if (place.kind === "memory") look.odd = false;
      walk.hide();
    }
    look.place = place;
    wish();
  }
  function drawPlaces() {
    const { place } = look;
    const isGallery = place.kind === "gallery";
    places.press(isGallery ? "gallery" : place.space);
    for (const space of Object.keys(SPACE_WORDS)) places.button(space).disabled = session.ready && !spaces().includes(space);
    places.button("gallery").disabled = Boolean(session.facts.public && shelf.isTold && !shelf.list.length);
    picker.hidden = !isGallery || !shelf.list.length;
    const options = shelf.list.map((one) => [one.name, one.fits ? one.name : `${one.name} (another model)`]);
    if (place.name && !shelf.known(place.name)) options.unshift([place.name, place.name]);
    if (picker.dataset.told !== JSON.stringify(options)) picker.replaceChildren(...options.map(([value, words]) => h("option", { value }, words)));
    picker.dataset.told = JSON.stringify(options);
    picker.value = place.name ?? "";
    manage.textContent = shelf.list.length || session.facts.public ? "Galleries…" : "Make a gallery…";
    manage.hidden = Boolean(session.facts.public && !shelf.list.length);
    shelf.show(isGallery ? place.name : null);
    show.node.hidden = !isGallery;
    pathField.hidden = Boolean(session.facts.public); // paths are not shown there
    exact.hidden = !(isGallery && shelf.known(place.name)?.index);
  }

  // ---- the query
  const pictureOf = (handle) => session.pictures.find((one) => one.handle === handle);
  const end = (one) => (one.handle ? { query: asAsked(one), name: pictureOf(one.handle)?.name ?? "picture", thumb: `api/picture/${one.handle}` } : { query: asAsked(one), name: one.name, thumb: one.thumb });
  const asQuery = ({ id, place, name, uri, thumb }) => ({ id, place, name, uri, thumb });
  function drop(list, one) {
    if (list === queries) queries = without(queries, one);
    else less = without(less, one);
    session.tell();
  }
  function chip(one, list) {
    const { name, thumb } = end(one);
    const remove = list === less || list.length > 1;
    return h("span", { class: "qchip" }, h("img", { src: one.handle ? `${thumb}?size=tray` : thumb, alt: "" }), h("span", { title: name }, name),
      remove ? h("button", { type: "button", class: "btn quiet icon", "aria-label": `Leave out ${name}`, onclick: () => { drop(list, one); (list === less ? lessen : add).focus(); } }, icon("close")) : null);
  }
  function drawQueries() {
    const stamp = JSON.stringify([queries, less, session.pictures.map((one) => one.handle)]);
    if (chips.dataset.stamp !== stamp) {
      chips.replaceChildren(...(queries.length ? queries.map((one) => chip(one, queries)) : [h("span", { class: "meta" }, "none")]));
      lessChips.replaceChildren(...less.map((one) => chip(one, less)));
      chips.dataset.stamp = stamp;
    }
    lessBox.hidden = !less.length;
    add.setAttribute("aria-pressed", String(isAdding));
    add.disabled = !session.ready;
    between.hidden = queries.length !== 2;
    hint.textContent = queries.length >= MOST ? `${MOST} at most` : isAdding ? "Choose more pictures above; their mean is searched with." : queries.length > 1 ? "Their mean is searched with." : "";
    tiles.refresh();
    walk.refresh();
  }
  function can(verb, hit) {
    if (verb === "again") return !(queries.length === 1 && isIn(queries, hit) && !less.length);
    if (verb === "both") return queries.length > 0 && queries.length < MOST && !isIn(queries, hit);
    if (verb === "less") return queries.length > 0 && less.length < MOST && !isIn(less, hit) && !isIn(queries, hit);
    if (verb === "walk") return queries.length > 0 && !isIn(queries.slice(0, 1), hit);
    return queries.length > 0 && Boolean(hit.picture);
  }
  function asks(nextQueries, nextLess) {
    [queries, less] = [nextQueries, nextLess];
    look.odd = false;
    session.tell(); // the tray shows which of its pictures are in use
    asking.scrollIntoView({ block: "nearest" });
  }
  function again(hit) { asks([asQuery(hit)], []); }
  function both(hit) { asks([...queries, asQuery(hit)], without(less, hit)); }
  function lessLike(hit) { asks(queries, [...less, asQuery(hit)]); }

  function filter(isTyping = false) {
    const wanted = ofClass.value.trim();
    const isWhole = !wanted || [...classes.children].some((one) => one.value === wanted);
    if (!isTyping || isWhole) look.class_name = wanted; // half a class name finds nothing
    look.path = ofPath.value.trim();
    wish();
  }

  // ---- asking
  const isAwaited = () => Boolean(linked && opening.now && session.link.has("model") && session.link.get("model") !== session.facts.model?.source); // the model of the link is still on its way
  function restore() {
    const number = Number(linked.get("k"));
    look.place = placeOf(linked.get("place")) ?? look.place;
    look.k = COUNTS.includes(number) ? number : look.k;
    look.class_name = ofClass.value = linked.get("class") ?? "";
    look.path = ofPath.value = linked.get("path") ?? "";
    look.exact = exact.querySelector("input").checked = linked.get("exact") === "1";
    look.odd = linked.get("show") === "odd";
    look.fold = fold.querySelector("input").checked = linked.get("fold") !== "0";
    const [some, others] = ["with", "less"].map((name) => (linked.get(name) ?? "").split(",").filter(Boolean).slice(0, MOST).map(readQuery));
    if ([...some, ...others].includes(null)) session.problem = { title: "A picture of this link is not here.", text: "Uploads are kept for one visit; add it again." };
    [queries, less] = [some, others].map((all) => all.filter(Boolean));
    if (queries.length) followed = session.handle;
    linked = null;
  }
  function readQuery(word) {
    const [, gallery, id] = /^(?:slot|gallery:([\w.-]+)):(\d{1,9})$/.exec(word) ?? [];
    if (id === undefined) return pictureOf(word) ? { handle: word } : null;
    const place = gallery ? { kind: "gallery", name: gallery } : { kind: "memory", space: spaces()[0] ?? "memory" };
    return { id: Number(id), place, name: gallery ? `picture ${id}` : `slot ${id}`, thumb: thumbOf(place, id) };
  }
  const thumbOf = (place, id) => (place.kind === "gallery" ? `api/galleries/${encodeURIComponent(place.name)}/thumb/${id}` : `api/thumb/${session.facts.model.handle}/${id}`);

  function wish() {
    const { model } = session.facts;
    if (session.ready && !isAwaited()) {
      if (linked) restore();
      const isHere = (one) => (one.handle ? pictureOf(one.handle) : !modelOf || modelOf === model.handle); // rows are another model's
      [queries, less] = [queries.filter(isHere), less.filter(isHere)];
      modelOf = model.handle;
      if (session.handle !== followed || !queries.length) queries = session.handle ? [{ handle: session.handle }] : [];
      followed = session.handle;
      if (!shelf.isFresh) shelf.refresh();
      if (look.place.kind === "memory" && spaces().length && !spaces().includes(look.place.space)) look.place = { kind: "memory", space: spaces()[0] };
      if (look.place.kind === "memory" && !spaces().length && firstGallery()) look.place = { kind: "gallery", name: firstGallery() };
      if (look.place.kind === "gallery" && !look.place.name) look.place = { kind: "gallery", name: firstGallery() };
      drawPlaces();
      if (!obstacle()) {
        const question = { model: model.handle, place: look.place, ...(look.odd ? { odd: true } : { queries: queries.map(asAsked), less: less.map(asAsked), k: look.k, exact: look.exact || null, class_name: look.class_name, words: look.path }) };
        const stamp = JSON.stringify([question, shelf.known(look.place.name)?.rev]);
        if (![asked, asked ? null : found, refused].some((one) => one?.stamp === stamp)) search(stamp, question);
      } else asked = null;
      keepLink();
    }
    drawQueries();
    showState();
  }
  async function search(stamp, question) {
    const mine = asked = { stamp };
    const { model } = session.facts;
    const answer = question.odd ? await get(`api/galleries/${encodeURIComponent(question.place.name)}/oddities?k=${NEAR}`) : await ask("search", question);
    const result = answer?.key ? await get(`api/found/${answer.key}`) : answer;
    if (asked !== mine || !result) return;
    asked = null;
    if (result.error) refused = { stamp, error: typeof result.error === "string" ? { title: "The results did not arrive.", text: result.error } : result.error };
    else {
      refused = null;
      found = { ...result, stamp, key: answer.key ?? null, question, model };
      draw();
    }
    showState();
  }
  const ask = (kind, question) => line.ask({ ...question, ask: kind });

  async function askWalk(a, b, n) {
    const answer = await ask("walk", { model: session.facts.model.handle, place: look.place, a, b, n });
    const result = answer?.key ? await get(`api/walked/${answer.key}`) : answer;
    if (!result || result.error) return result;
    const hits = result.points.map((one, i) => ({ ...hitOf(one, i, result.place), title: `Step ${i + 1} of ${result.points.length}`, label: `${Math.round(one.at * 100)} %`, mark: one.class_name ?? "" }));
    return { angle: result.angle, hits, where: wordsOf(result.place) };
  }
  async function explain(hit) {
    const answer = await ask("explain", { model: session.facts.model.handle, place: hit.place, queries: queries.map(asAsked), less: less.map(asAsked), id: hit.id });
    if (!answer || answer.error) return answer;
    const response = await fetch(`api/explained/${answer.key}`).catch(() => null);
    const data = response?.ok ? await response.arrayBuffer().catch(() => null) : null;
    return data ? unpack(data) : { error: { title: "The explanation did not arrive.", text: "Try again." } };
  }

  // ---- results
  function hitOf(one, rank, place) {
    const isGallery = place.kind === "gallery";
    const { thumb } = one;
    const paths = one.paths.length ? one.paths : one.uri ? [one.uri] : [];
    const name = fileOf(paths[0]) || (isGallery ? `picture ${one.id}` : `slot ${one.id}`);
    const step = one.step === undefined ? null : one.step < 0 ? "before training" : `step ${count(one.step)}`;
    const facts = [["Cosine", one.score.toFixed(4)], ["Class", one.class_name ?? "none known"],
      ...(one.width ? [["Size", `${count(one.width)}×${count(one.height)} px`]] : []),
      ...(isGallery ? [] : [["Slot", count(one.id)], ["Image", one.image_id < 0 ? "unknown" : count(one.image_id)], ...(step ? [["Written", step]] : [])]),
      ...(paths.length ? [[paths.length > 1 ? "Files" : isGallery ? "File" : "Source", [...paths, ...(one.more_paths ? [`and ${count(one.more_paths)} more`] : [])]]] : [])];
    return {
      ...one, place, rank, name, facts, uri: paths[0] ?? "",
      picture: one.picture ?? thumb,
      label: one.class_name ?? (isGallery ? name : "no class"), mark: isGallery ? "" : count(one.id),
      title: `Rank ${rank + 1}`, note: `cosine ${one.score.toFixed(3)}`,
      words: `Rank ${rank + 1}, score ${one.score.toFixed(3)}, ${[one.class_name ?? "no class", paths[0] ?? `slot ${one.id}`].join(", ")}`,
    };
  }
  function draw() {
    const { odd } = found.question;
    const place = found.place ?? { ...found.question.place, rev: shelf.known(found.question.place.name)?.rev };
    const records = odd ? found.oddities : found.results;
    found.hits = records.map((one, rank) => ({ ...hitOf(one, rank, place), ...(odd ? { note: "mean cosine to the nearest others" } : {}) }));
    tiles.show(found.hits, odd || !look.fold ? [] : found.groups);
    drawHead();
    command.text = typed();
  }
  function drawHead() {
    const { question: { place, odd }, hits } = found;
    const where = wordsOf(place);
    if (odd) {
      title.textContent = "Oddest first";
      meta.textContent = `${count(hits.length)} of ${count(found.total)}${found.judged < found.total ? `, ${count(found.judged)} of them looked at` : ""} · ${where} · by the mean cosine to their ${NEAR} nearest`;
      return;
    }
    const { kept, total } = found;
    const { folded } = tiles;
    title.textContent = hits.length === 1 ? "The only one" : `${count(hits.length)} most alike`;
    const of = kept < total ? `of ${count(kept)} that pass the filters` : `of ${count(total)}`;
    const how = found.exact ? "exact" : `index, recall@10 ${found.recall === null ? "not" : found.recall.toFixed(2)} measured`;
    meta.textContent = [of, where, folded ? `${count(folded)} near-duplicate${folded > 1 ? "s" : ""} folded, from a cosine of ${below(found.duplicate, 4)}` : "", how, seconds(found.time_s)].filter(Boolean).join(" · ");
  }
  function typed() {
    const { question, model } = found;
    const file = (one) => shellWord(one.handle ? pictureOf(one.handle)?.name ?? "picture.png" : one.uri || one.name);
    const words = ["python -m analysis"];
    if (question.odd) return ""; // only on the page
    words.push("search", ...queries.map(file));
    if (queries.length > 1) words.push("--mean");
    if (less.length) words.push("--less", ...less.map(file));
    if (question.place.kind === "gallery") words.push("--gallery", question.place.name);
    else if (question.place.space !== spaces()[0]) words.push("--space", question.place.space);
    words.push("--model", shellWord(model.typed), "--k", String(question.k));
    if (question.class_name) words.push("--class-name", shellWord(question.class_name));
    if (question.words) words.push("--path", shellWord(question.words));
    if (question.exact) words.push("--exact");
    if (tiles.folded) words.push("--fold", below(found.duplicate, 6));
    return words.join(" ");
  }
  let isTaking = false;
  async function take(kind) {
    isTaking = true;
    showState();
    const response = await fetch(`api/found/${found.key}/export`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ kind, pictures: true }) }).catch(() => null);
    const blob = response?.ok ? await response.blob().catch(() => null) : null;
    if (blob) save(blob, `found.${kind}`);
    else session.fail({ title: "The file did not arrive.", text: "Search again, then try again." });
    isTaking = false;
    showState();
  }

  // ---- classes that can be asked for
  let classesOf = "";
  async function bringClasses() {
    const stamp = JSON.stringify([look.place, shelf.known(look.place.name)?.rev, session.facts.model?.handle, obstacle() === null]);
    if (stamp === classesOf) return;
    classesOf = stamp;
    classes.replaceChildren();
    if (obstacle()) return;
    const answer = await get(look.place.kind === "gallery" ? `api/galleries/${encodeURIComponent(look.place.name)}/classes` : `api/classes/${session.facts.model.handle}`);
    if (stamp === classesOf && !answer.error) classes.replaceChildren(...answer.classes.map((value) => h("option", { value })));
  }

  function keepLink() {
    if (element.offsetParent === null) return;
    const one = queries.length === 1 && queries[0].handle;
    const list = (all) => (all.length ? all.map(wordOf).join(",") : null);
    writeLink({ tab: "search", place: named(look.place) === spaces()[0] ? null : named(look.place), img: session.handle, with: one ? null : list(queries), less: list(less), k: look.k === COUNTS[0] ? null : look.k,
      class: look.class_name || null, path: look.path || null, exact: look.exact ? 1 : null, fold: look.fold ? null : 0, show: look.odd ? "odd" : null });
  }

  // ---- states
  // Why nothing can be searched now: what stands in place of the results; null when all is there
  function obstacle() {
    const { facts } = session;
    const { place } = look;
    const isOurs = !facts.public;
    const make = (words, what = { how: "make" }) => (isOurs ? [h("button", { type: "button", class: "btn pri", onclick: () => shelf.open(what) }, words)] : []);
    if (facts.state === "failed") return [note(facts)];
    if (facts.state === "starting" || isAwaited()) return [h("p", {}, "Opening the model"), h("p", { class: "meta" }, "It takes a few seconds; results appear by themselves.")];
    if (place.kind === "memory" && !facts.model.memory) {
      return [h("p", {}, `${facts.model.name} has no memory to search in.`), ...make("Make a gallery"), h("p", { class: "meta" }, isOurs ? "Of a folder of pictures, which are embedded once." : "Choose a model with a memory above.")];
    }
    if (place.kind === "gallery") {
      const one = shelf.known(place.name);
      if (!shelf.isTold) return [h("p", {}, "Looking at the galleries")];
      if (shelf.failed && !one) return [note(shelf.failed)];
      if (!place.name) return [h("p", {}, "There is no gallery yet. One holds the pictures of a folder, each embedded once, to be searched in a moment."), ...make("Make a gallery")];
      if (shelf.isLive(place.name) && !one?.pictures) return [h("p", {}, `Gallery ${place.name} is being made.`), h("p", { class: "meta" }, "It can be searched as soon as all its pictures are embedded; the page may be closed meanwhile.")];
      if (!one) return [h("p", {}, `There is no gallery ${place.name} here (any more).`), ...make("Make a gallery")];
      if (one.problem) return [note({ title: `Gallery ${place.name} cannot be opened.`, text: one.problem })];
      if (!one.finished) return [h("p", {}, `Gallery ${place.name} is not finished; what is embedded of it is kept.`), ...make("Go on", { how: "update", name: place.name })];
      if (!one.fits) {
        return [h("p", {}, `Gallery ${place.name} was embedded by ${one.model || "another model"}, so ${facts.model.name} cannot search in it.`),
          h("div", { class: "line" }, ...make("Embed it again", { how: "again", name: place.name }), one.source ? h("button", { type: "button", class: "btn", onclick: () => openModel(one.source, { title: one.model }) }, "Open that model") : null),
          h("p", { class: "meta" }, isOurs ? "Until the new embeddings are there, the old ones stay." : "Open that model above, or choose another gallery.")];
      }
    }
    if (!look.odd && !queries.length) return [h("p", {}, "Choose a picture to see what is most like it."), h("button", { type: "button", class: "btn pri", onclick: chooseFile }, "Add a picture")];
    return null;
  }
  let slow;
  let blank = "";
  function showState() {
    const why = obstacle();
    const isReady = session.ready && !isAwaited();
    results.hidden = Boolean(why);
    command.node.hidden = Boolean(why) || look.odd;
    state.hidden = !why;
    filters.hidden = Boolean(why);
    asking.hidden = !isReady || (look.place.kind === "gallery" && !shelf.wasTold); // it does not grow when the list comes
    const told = why ? why.map((one) => one.textContent).join("|") : "";
    if (told !== blank) state.replaceChildren(...(why ?? [])); // a button of it may have the focus
    blank = told;
    const isOfFilters = /filters/.test(refused?.error?.text ?? "");
    const error = why || asked || !refused ? null : isOfFilters ? { ...refused.error, title: "Nothing passes the filters." } : refused.error;
    if (problem.dataset.told !== JSON.stringify(error)) problem.replaceChildren(...(error ? [note(error), ...(look.class_name || look.path ? [clear] : [])] : []));
    problem.dataset.told = JSON.stringify(error);
    show.press(look.odd ? "odd" : "alike");
    counts.press(String(look.k));
    for (const node of filters.querySelectorAll(".fld, .sw")) {
      node.classList.toggle("off", look.odd);
      node.inert = look.odd;
    }
    for (const button of files) button.disabled = isTaking || look.odd || Boolean(asked) || !found?.key || Boolean(error);
    if (!isReady) return;
    bringClasses();
    results.classList.toggle("stale", Boolean(error));
    results.setAttribute("aria-busy", String(Boolean(asked && !why)));
    clearTimeout(slow);
    if (asked && !why) {
      const isOther = found && (named(found.question.place) !== named(look.place) || Boolean(found.question.odd) !== look.odd || found.model !== session.facts.model);
      if (!found || isOther) {
        found = null;
        tiles.skeleton(look.odd ? ODD : look.k);
        title.textContent = look.odd ? "Looking for odd pictures…" : "Searching…";
        meta.textContent = "";
      }
      slow = setTimeout(() => {
        results.classList.toggle("old", Boolean(found));
        busy.hidden = false;
        busy.replaceChildren(h("span", {}, look.odd ? "Comparing all pictures with each other" : "Searching"), h("span", { class: "meta" }, found ? "The previous result stays until the new one is there." : "The results appear here."));
      }, SLOW_MS);
      return;
    }
    results.classList.remove("old");
    busy.hidden = true;
  }

  whileVisible(element, wish);
}
