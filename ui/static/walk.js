// A walk from one picture to another: points along the great circle between them, and what lies nearest to each.

import { h, icon, note, slider } from "./dom.js";
import { foundTiles } from "./found.js";

const [FEWEST, MOST, FIRST] = [3, 24, 8];
const REST_MS = 250; // after the last move of the slider

// `ask(a, b, n)` -> {angle, hits} | {error} | null when a later question took its place; `closed` hears that it is over
export function walkStrip({ ask, actions, closed }) {
  let ends = null; // {a, b}: what is asked with, and how it is called and shown: {query, name, thumb}
  let timer;
  let turn = 0;

  const title = h("h2", { tabindex: "-1" }, "Walk");
  const meta = h("span", { class: "meta", role: "status" });
  const problem = h("div", { class: "slot", "aria-live": "polite" });
  const steps = slider("Steps", { min: FEWEST, max: MOST, value: FIRST, words: String, oninput: () => { clearTimeout(timer); timer = setTimeout(bring, REST_MS); } });
  const close = h("button", { type: "button", class: "btn quiet icon", "aria-label": "Close the walk", onclick: () => { hide(); closed(); } }, icon("close"));
  const [from, to] = ["From", "To"].map((words) => ({ words, image: h("span", { class: "pic" }), told: h("span", { class: "meta" }) }));
  const end = ({ words, image, told }) => h("figure", { class: "end" }, image, h("figcaption", {}, h("b", {}, words), told));
  const tiles = foundTiles({ actions, strip: true, name: "Pictures on the way" });
  const node = h("section", { class: "walk", hidden: true, "aria-label": "Walk" },
    h("div", { class: "head" }, title, meta, close), problem,
    h("div", { class: "way" }, end(from), tiles.node, end(to)), steps.node);

  async function bring() {
    if (!ends) return;
    const mine = ++turn;
    const { a, b } = ends;
    problem.replaceChildren();
    node.classList.toggle("old", tiles.hits.length > 0);
    if (!tiles.hits.length) tiles.skeleton(steps.value);
    meta.textContent = "walking…";
    const answer = await ask(a.query, b.query, steps.value);
    if (mine !== turn || !answer) return;
    node.classList.remove("old");
    if (answer.error) {
      meta.textContent = "";
      tiles.show([]);
      problem.replaceChildren(note(answer.error));
      return;
    }
    meta.textContent = `${answer.hits.length} steps over ${Math.round(answer.angle)}°, ${answer.where}`;
    tiles.show(answer.hits);
  }

  function hide() {
    turn++;
    ends = null;
    node.hidden = true;
    clearTimeout(timer);
    tiles.show([]);
  }

  return {
    node,
    get isOpen() { return Boolean(ends); },
    go(a, b) {
      ends = { a, b };
      for (const [part, one] of [[from, a], [to, b]]) {
        part.image.replaceChildren(h("img", { src: one.thumb, alt: one.name }));
        part.told.textContent = part.told.title = one.name;
      }
      node.hidden = false;
      bring();
      title.focus();
      node.scrollIntoView({ block: "nearest" });
    },
    hide,
    refresh: tiles.refresh,
  };
}
