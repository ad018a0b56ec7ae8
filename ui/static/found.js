// What was found: tiles, near-duplicates folded behind the first of them, and beneath a tile's row the details of one.

import { cividis, drawRamp } from "./colormap.js";
import { count, h, icon, note } from "./dom.js";
import { framed } from "./frame.js";
import { thumbnail } from "./mapslots.js";
import { strongest } from "./maps.js";
import { colourPatches, drawRing } from "./stage.js";

const PAGE = 60; // tiles before "Show more"
const VERBS = { again: "Search with this", both: "More like both", less: "Less like this", walk: "Walk to this" };

// A picture of any shape in a square that never changes its size: the image, and a canvas over it
function square() {
  const overlay = h("canvas", { class: "overlay", hidden: true });
  const inner = h("div", { class: "inner" });
  const node = h("div", { class: "stage pic" }, inner);
  return {
    node,
    overlay,
    show(image, ratio) {
      inner.style.width = `${100 * Math.min(1, ratio)}%`;
      inner.style.height = `${100 * Math.min(1, 1 / ratio)}%`;
      inner.replaceChildren(image, overlay);
    },
  };
}

// The heat of an explanation over its picture, drawn in the picture's own px
function drawHeat(canvas, { arrays, facts }, ratio) {
  const { rows, columns, low, high, frame } = facts;
  const [width, height] = ratio > 1 ? [640, 640 / ratio] : [640 * ratio, 640];
  Object.assign(canvas, { width: Math.round(width), height: Math.round(height) });
  const context = canvas.getContext("2d");
  const place = frame ? framed(frame) : null;
  const [x0, y0, x1, y1] = place ? place.cover : [0, 0, 1, 1];
  const area = [x0 * canvas.width, y0 * canvas.height, (x1 - x0) * canvas.width, (y1 - y0) * canvas.height];
  context.imageSmoothingQuality = "high";
  context.drawImage(colourPatches(arrays.heat, rows, columns, { low, high, alpha: (t) => 255 * (0.15 + 0.65 * t * t), levels: cividis }), ...area);
  const best = strongest(arrays.heat);
  const [row, column] = [Math.floor(best / columns), best % columns];
  const [w, tall] = [area[2] / columns, area[3] / rows];
  drawRing(context, area[0] + (column + 0.5) * w, area[1] + (row + 0.5) * tall, Math.max(12, 0.6 * Math.max(w, tall)), 1.6);
  return { row, column };
}

// `actions`: {again, both, less, walk}(hit), can(verb, hit), explain(hit) -> {arrays, facts} | {error} | null, and
// queries() -> [{thumb, name}]
export function details({ actions, closed }) {
  let hit = null;
  let ratio = 1;

  const picture = square();
  const asked = square();
  const low = h("span", { class: "meta" });
  const high = h("span", { class: "meta" });
  const ramp = h("canvas", { "aria-hidden": "true" });
  const scale = h("div", { class: "scale" }, low, ramp, high);
  const told = h("p", { class: "meta", role: "status" });
  const title = h("h3", { tabindex: "-1" });
  const titleMeta = h("span", { class: "meta" });
  const facts = h("dl", { class: "facts" });
  const problem = h("div", { class: "slot", "aria-live": "polite" });
  const explain = h("button", { type: "button", class: "btn", "aria-pressed": "false", onclick: () => showWhy() }, "Explain");
  const buttons = Object.entries(VERBS).map(([verb, words], i) => [verb, h("button", { type: "button", class: i ? "btn" : "btn pri", onclick: () => actions[verb](hit) }, words)]);
  const asker = h("figure", { class: "asker" }, h("figcaption", { class: "meta" }, "Query"), asked.node);
  const node = h("div", { class: "detail", role: "group" },
    asker,
    h("figure", {}, h("figcaption", { class: "meta" }, "Result"), picture.node, scale, told),
    h("div", { class: "sides" },
      h("div", { class: "head" }, title, titleMeta, h("button", { type: "button", class: "btn quiet icon", "aria-label": "Close the details", onclick: closed }, icon("close"))),
      facts, h("div", { class: "line acts" }, buttons[0][1], explain, buttons.slice(1).map(([, button]) => button)), problem));
  node.addEventListener("keydown", (event) => { if (event.key === "Escape") { event.stopPropagation(); closed(); } });
  drawRamp(ramp, cividis);

  function clear() {
    picture.overlay.hidden = true;
    explain.setAttribute("aria-pressed", "false");
    explain.disabled = false;
    scale.classList.remove("on");
    told.textContent = "";
    problem.replaceChildren();
  }

  async function showWhy() {
    const mine = hit;
    const isOn = explain.getAttribute("aria-pressed") === "true";
    clear();
    if (isOn) return;
    explain.disabled = true;
    told.textContent = "Comparing its patches with the query…";
    const answer = await actions.explain(hit);
    if (mine !== hit) return;
    explain.disabled = false;
    told.textContent = "";
    if (!answer) return;
    if (answer.error) { problem.replaceChildren(note(answer.error)); return; }
    const { row, column } = drawHeat(picture.overlay, answer, ratio);
    const [least, most] = [answer.facts.low, answer.facts.high].map((v) => v.toFixed(3));
    const words = `strongest in row ${row}, column ${column} of ${answer.facts.rows}×${answer.facts.columns} patches`;
    picture.overlay.hidden = false;
    picture.overlay.setAttribute("role", "img");
    picture.overlay.setAttribute("aria-label", `What of the result is like the query: ${words}, cosine ${most}`);
    explain.setAttribute("aria-pressed", "true");
    scale.classList.add("on");
    [low.textContent, high.textContent] = [least, most];
    told.textContent = `Cosine of each patch with the query; ${words}.`;
  }

  return {
    node,
    get hit() { return hit; },
    // `seen`: the tile's image, whose shape is known before the larger picture has come
    show(next, seen) {
      hit = next;
      ratio = hit.width && hit.height ? hit.width / hit.height : seen?.naturalWidth ? seen.naturalWidth / seen.naturalHeight : 1;
      const image = hit.picture ? h("img", { src: hit.picture, alt: hit.words, onerror: () => image.replaceWith(thumbnail(hit.thumb)) }) : h("span", { class: "meta none" }, "picture not kept");
      picture.show(image, ratio);
      clear();
      title.textContent = hit.title;
      titleMeta.textContent = hit.note ?? "";
      node.setAttribute("aria-label", `Details: ${hit.words}`);
      facts.replaceChildren(...hit.facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, [value].flat().map((line) => h("div", {}, line)))]));
      const queries = actions.queries();
      asker.hidden = !queries.length;
      if (queries.length) showQueries(queries);
      this.refresh();
    },
    // what can be done with it depends on what is asked now
    refresh() {
      if (!hit) return;
      for (const [verb, button] of buttons) button.disabled = !actions.can(verb, hit);
      explain.disabled = !actions.can("explain", hit);
    },
    hide() {
      hit = null;
      node.remove();
    },
    focus() { title.focus(); },
  };

  function showQueries(queries) {
    const image = ({ thumb, name }) => h("img", { src: thumb, alt: `Query: ${name}` });
    if (queries.length > 1) {
      asked.show(h("div", { class: "several" }, queries.map(image)), 1);
      return;
    }
    const one = image(queries[0]);
    one.addEventListener("load", () => { if (one.isConnected) asked.show(one, one.naturalWidth / one.naturalHeight); }, { once: true });
    asked.show(one, queries[0].ratio ?? 1);
  }
}

// Tiles of hits {rank, id, score, thumb, picture, words, title, label, facts, …}. In a strip they stand in one row that
// scrolls, its details beneath it.
export function foundTiles({ actions, strip = false, name }) {
  let hits = [];
  let groups = new Map(); // rank of the first -> ranks of all of a group
  const unfolded = new Set();
  let most = PAGE;
  let opened = null; // the hit whose details are shown
  const nodes = new Map(); // hit -> its <li>

  const list = h("ul", { class: strip ? "hits strip" : "hits", "aria-label": name });
  const more = h("button", { type: "button", class: "btn more", hidden: true, onclick: () => { most += PAGE; draw(); } }, "Show more");
  const box = details({ actions, closed: () => { const { hit } = box; close(); nodes.get(hit)?.querySelector(".tile").focus(); } });
  const place = h(strip ? "div" : "li", { class: "detailplace" });
  const node = h("div", { class: "hitbox" }, list, more);
  new ResizeObserver(() => putDetails()).observe(list);

  function tile(hit) {
    const group = groups.get(hit.rank);
    const press = h("button", { type: "button", class: "tile", "aria-expanded": "false", "aria-label": hit.words, title: hit.uri || null, onclick: (event) => toggle(hit, event.detail === 0) },
      h("span", { class: "pic" }, thumbnail(hit.thumb)),
      h("span", { class: "sc" }, hit.score.toFixed(3), h("i", {}, h("u", { style: { width: `${100 * Math.max(0, Math.min(1, hit.score))}%` } }))),
      h("span", { class: "meta" }, h("span", {}, hit.label), hit.mark ? h("span", {}, hit.mark) : null));
    const alike = group && h("button", { type: "button", class: "alike", "aria-expanded": "false", "aria-label": `${group.length - 1} nearly the same as result ${hit.rank + 1}`, onclick: () => fold(hit.rank) }, `+${group.length - 1} alike`);
    return h("li", { class: "hit" }, press, alike || null);
  }

  // those on screen, in order: of a folded group the first alone
  function shown() {
    const inGroup = new Map();
    for (const ranks of groups.values()) for (const rank of ranks.slice(1)) inGroup.set(rank, ranks[0]);
    return hits.flatMap((hit) => {
      if (inGroup.has(hit.rank)) return [];
      return unfolded.has(hit.rank) ? groups.get(hit.rank).map((rank) => hits[rank]) : [hit];
    });
  }

  function draw() {
    const all = shown();
    const now = all.slice(0, most);
    const tiles = now.map((hit) => {
      if (!nodes.has(hit)) nodes.set(hit, tile(hit));
      const one = nodes.get(hit);
      const isOpen = hit === opened;
      one.querySelector(".tile").setAttribute("aria-expanded", String(isOpen));
      const chip = one.querySelector(".alike");
      if (chip) chip.setAttribute("aria-expanded", String(unfolded.has(hit.rank)));
      one.classList.toggle("twin", [...groups.values()].some((ranks) => ranks.slice(1).includes(hit.rank)));
      return one;
    });
    const had = [...list.children].filter((one) => one !== place);
    if (tiles.length !== had.length || tiles.some((one, i) => one !== had[i])) list.replaceChildren(...tiles);
    more.hidden = all.length <= most;
    more.textContent = `Show ${count(Math.min(PAGE, all.length - most))} more`;
    if (opened && !now.includes(opened)) close();
    putDetails();
  }

  function fold(rank) {
    if (unfolded.has(rank)) unfolded.delete(rank);
    else unfolded.add(rank);
    const { activeElement } = document;
    draw();
    if (list.contains(activeElement)) activeElement.focus();
  }

  function toggle(hit, byKey) {
    if (opened === hit) { close(); return; }
    opened = hit;
    box.show(hit, nodes.get(hit).querySelector("img"));
    draw();
    if (byKey) box.focus();
    place.scrollIntoView({ block: "nearest" });
  }

  function close() {
    opened = null;
    box.hide();
    place.remove();
    for (const one of list.querySelectorAll(".tile")) one.setAttribute("aria-expanded", "false");
  }

  // the details stand after the last tile of the row of theirs
  function putDetails() {
    if (!opened) return;
    if (!place.contains(box.node)) place.replaceChildren(box.node);
    if (strip) { if (place.parentNode !== node) list.after(place); return; }
    const tiles = [...list.children].filter((one) => one !== place);
    const columns = getComputedStyle(list).gridTemplateColumns.split(" ").length;
    const at = tiles.indexOf(nodes.get(opened));
    const last = tiles[Math.min(tiles.length - 1, (Math.floor(at / columns) + 1) * columns - 1)];
    if (last && last.nextSibling !== place) last.after(place);
  }

  return {
    node,
    get hits() { return hits; },
    get folded() { return [...groups.values()].reduce((sum, ranks) => sum + ranks.length - 1, 0); },
    // `alike`: ranks of near-duplicates, [[rank, …], …]
    show(next, alike = []) {
      close();
      hits = next;
      groups = new Map(alike.filter((ranks) => ranks.length > 1).map((ranks) => [ranks[0], ranks]));
      unfolded.clear();
      nodes.clear();
      most = PAGE;
      draw();
    },
    skeleton(n) {
      close();
      hits = [];
      groups = new Map();
      nodes.clear();
      more.hidden = true;
      list.replaceChildren(...Array.from({ length: Math.min(n, PAGE) }, () => h("li", { class: "hit skel", "aria-hidden": "true" }, h("span", { class: "pic" }), h("span", { class: "gap" }))));
    },
    refresh() { box.refresh(); },
    close,
  };
}
