// What stands beside the map: the pinned slot with its neighbours, and the slots of a selection with their files.

import { count, h } from "./dom.js";
import { searchWith } from "./searchwith.js";

const LISTED = 60; // tiles of a selection
export const SPACES = { memory: "Memory", embedding: "Embedding" };

const notKept = () => h("span", { class: "meta" }, "picture not kept");
export function thumbnail(url) {
  return url ? h("img", { src: url, alt: "", loading: "lazy", onerror: (event) => event.target.replaceWith(notKept()) }) : notKept();
}

function written({ step, last_step, times_written }) {
  if (step < 0) return "before training";
  const age = last_step - 1 - step; // steps count from 0
  return `step ${count(step)}${age > 0 ? `, ${count(age)} steps ago` : ""}${times_written > 1 ? `; ${count(times_written)} times in all` : ""}`;
}

// A slot's provenance and its neighbours; `go(slot)` for a click on one of these
export function pinnedCard(card, { unpin, go }) {
  const space = SPACES[card.space].toLowerCase();
  const pairs = [["Slot", count(card.slot)], ["Class", card.class_name ?? "none known"], ["Image", card.image_id < 0 ? "unknown" : count(card.image_id)], ["Source", card.uri ?? "unknown"],
    ["Written", written(card)], ["Overwritten", card.is_stale ? `since this snapshot of step ${count(card.last_step)}` : `in ${count(card.overwritten_in)} keys`],
    ["Crop", card.box ? card.box.map((v) => v.toFixed(2)).join(" · ") : "not kept"], ["Space", space], ["Bundle", card.bundle_hash?.slice(0, 8) ?? "none"]];
  const tile = (one) => h("button", { type: "button", class: "mini", "aria-label": `Slot ${one.slot}, cosine ${one.score.toFixed(3)}${one.class_name ? `, ${one.class_name}` : ""}`, onclick: () => go(one.slot) }, thumbnail(one.thumb), h("span", { class: "meta" }, one.score.toFixed(3)));
  return h("div", { class: "card" },
    h("div", { class: "head" }, h("h3", {}, `Slot ${count(card.slot)}`), h("button", { type: "button", class: "btn quiet small", onclick: unpin }, "Unpin")),
    h("div", { class: "pinhead" }, h("div", { class: "pic" }, thumbnail(card.thumb)), h("dl", { class: "facts" }, pairs.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]))),
    ...(card.thumb ? [searchWith({ slot: card.slot, space: card.space, name: card.class_name ?? `slot ${card.slot}`, thumb: card.thumb })] : []),
    h("div", { class: "head" }, h("h3", {}, "Nearest"), h("span", { class: "meta" }, `${space} space, exact`)),
    h("div", { class: "minis" }, card.neighbours.map(tile)));
}

// The tiles of chosen slots; `urlOf(slot)` of a picture or null
export function selection(words, slots, { urlOf, pin, take, clear }) {
  const files = ["csv", "parquet", "zip"].map((kind) => h("button", { type: "button", class: "btn small", disabled: !slots.length, onclick: () => take(kind) }, kind.toUpperCase()));
  const tiles = slots.slice(0, LISTED).map((slot) => h("button", { type: "button", class: "mini", "aria-label": `Slot ${slot}`, onclick: () => pin(slot) }, thumbnail(urlOf(slot)), h("span", { class: "meta mono" }, count(slot))));
  return [h("div", { class: "head" }, h("h2", {}, words), h("button", { type: "button", class: "btn quiet small", onclick: clear }, "Clear")), h("div", { class: "line" }, files),
    h("div", { class: "minis" }, tiles), ...(slots.length > LISTED ? [h("p", { class: "meta" }, `The first ${LISTED}; a file holds all.`)] : [])];
}
