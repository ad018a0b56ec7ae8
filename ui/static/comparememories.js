// The memories of two models that are nearest to one picture, side by side.

import { count, h } from "./dom.js";
import { session } from "./session.js";
import { memoryTiles } from "./tables.js";

export const MEMORIES = 20;
const SIDES = ["a", "b"];

// `ask(question)` takes it to Python
export function memoriesSection({ ask }) {
  let shown = null; // {name, models: {a, b}, answer | null while it is on its way, old}
  const sides = Object.fromEntries(SIDES.map((side) => [side, h("div")]));
  const recall = h("span", { class: "meta", role: "status" });
  const words = h("p", { class: "meta" });
  const node = h("section", { class: "memboth", "aria-label": "Nearest memories" },
    h("div", { class: "head" }, h("h2", {}, "Nearest memories"), recall), words, h("div", { class: "two" }, Object.values(sides)));

  async function bring(a, b) { // of the chosen picture
    const question = { ask: "memories", model: a.handle, other: b.handle, handle: session.handle, k: MEMORIES };
    const name = JSON.stringify(question);
    if (shown?.name === name) return;
    const mine = shown = { name, models: { a, b }, answer: null, old: shown?.answer ?? shown?.old ?? null };
    draw();
    const answer = await ask(question);
    if (shown !== mine || !answer) return;
    mine.answer = answer;
    draw();
  }

  function draw() {
    const { models, answer, old } = shown;
    const told = answer ?? old ?? {};
    const problem = answer?.error;
    for (const side of SIDES) {
      const { name, memory } = models[side];
      const text = !memory ? "This model has no memory." : problem ? `${problem.title} ${problem.text}` : undefined;
      memoryTiles(sides[side], { title: `${side.toUpperCase()} · ${name}`, meta: memory ? "cosine" : "", text, action: problem && memory ? again() : null,
        rows: answer && !problem ? answer[`rows_${side}`] : null, old: told[`rows_${side}`] });
      const tiles = sides[side].querySelector(".memories"); // a strip on a phone, which the keyboard scrolls too
      for (const [name, value] of [["tabindex", "0"], ["role", "group"], ["aria-label", `Memories of ${side.toUpperCase()}`]]) tiles?.setAttribute(name, value);
    }
    words.textContent = models.a.memory && models.b.memory ? told.words ?? "" : ""; // else each side says it
    recall.textContent = answer && !problem && !answer.words
      ? `${answer.shared} shared, ${(100 * answer.overlap).toFixed(0)} %${answer.chance === null ? "" : ` (chance ${(100 * answer.chance).toFixed(1)} %)`} · ringed in both · ${count(answer.common)} pictures lie in both memories` : "";
  }
  function again() {
    const { a, b } = shown.models;
    return h("button", { type: "button", class: "btn small", onclick: () => { shown = null; bring(a, b); } }, "Try again");
  }

  return { node, bring };
}
