// Keys of a view, and the dialog that lists them. No key acts while somebody writes or chooses in a field.

import { dialog } from "./dialog.js";
import { h } from "./dom.js";

const FIELDS = "input[type=text], input[type=number], textarea, select, [contenteditable]";

// `actions` {key: act}, letters in lower case; `list` [[keys, what they do]]; `isOn()` says whether the view hears.
// Arrows are heard only where `arrowsOf`, an element, has the focus.
export function shortcuts(id, { actions, list, isOn, arrowsOf }) {
  const rows = list.map(([keys, words]) => [h("dt", {}, keys.map((key) => h("kbd", {}, key))), h("dd", {}, words)]);
  const box = dialog(id, "Keys", h("dl", { class: "keys" }, rows));
  document.addEventListener("keydown", (event) => {
    if (!isOn() || document.querySelector("dialog[open]") || event.ctrlKey || event.metaKey || event.altKey) return;
    const isArrow = event.key.startsWith("Arrow");
    if (isArrow ? event.target !== arrowsOf : event.target.matches(FIELDS)) return;
    const act = { ...actions, "?": box.show }[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  return { dialog: box.node, show: box.show };
}
