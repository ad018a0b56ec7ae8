// What can be taken away from a view, in a row: first a link that leads back to what is on screen.

import { h, icon } from "./dom.js";

// It stands in the tray; on a phone after the node `below`, where it does not push the picture down. `keepLink` brings the
// address up to date.
export function exportsRow({ tray, below, keepLink, buttons }) {
  const narrow = matchMedia("(max-width: 640px)");
  const copy = h("button", { type: "button", class: "btn", onclick: copyLink }, icon("link"), "Copy link");
  const node = h("div", { class: "exports" }, copy, buttons);
  async function copyLink() {
    keepLink();
    try { await navigator.clipboard.writeText(location.href); copy.lastChild.textContent = "Copied"; } catch { copy.lastChild.textContent = "See address"; }
    setTimeout(() => { copy.lastChild.textContent = "Copy link"; }, 1500);
  }
  function place() {
    const acts = document.querySelector(`#${tray} .acts`);
    const isThere = narrow.matches ? below.nextSibling === node : node.parentNode === acts;
    if (isThere) return; // moved, its buttons would lose the focus
    if (narrow.matches) below.after(node);
    else acts?.append(node);
  }
  narrow.addEventListener("change", place);
  return { node, copy, place };
}
