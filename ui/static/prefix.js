// Class token and registers: tokens without a place in the picture, as cells beside the map. A click makes one the query.

import { colourAt, inferno } from "./colormap.js";
import { h, weight } from "./dom.js";

// "cls" -> "class token", "register:0" -> "register 1"; null for a patch or the mean
export function prefixWords(query) {
  if (query === "cls") return "class token";
  return String(query).startsWith("register:") ? `register ${Number(query.slice("register:".length)) + 1}` : null;
}

export function prefixCells(choose) {
  const cells = h("div", { class: "cells", role: "group", "aria-label": "Tokens without a place" });
  const share = h("span", { class: "meta" });
  let shown = "";
  let buttons = [];
  return {
    node: h("div", { class: "prefix" }, cells, share),
    // queries that name the tokens in order
    build(queries) {
      if (shown === queries.join()) return;
      shown = queries.join();
      buttons = queries.map((query) => {
        const words = prefixWords(query);
        const [swatch, value] = [h("i"), h("span")];
        const button = h("button", { type: "button", "aria-pressed": "false", title: `Show where the ${words} reads`, onclick: () => choose(query) }, swatch, h("b", {}, words[0].toUpperCase() + words.slice(1)), value);
        return { query, button, swatch, value };
      });
      cells.replaceChildren(...buttons.map(({ button }) => button));
      if (!queries.length) share.textContent = "This model has no class token and no registers: all weight lies on the patches.";
    },
    enable(isOn) {
      for (const { button } of buttons) button.disabled = !isOn;
    },
    // weights on these tokens, coloured as the map is; `row` are all weights
    draw(weights, row, top, chosen) {
      buttons.forEach(({ query, button, swatch, value }, i) => {
        swatch.style.background = colourAt(inferno, top > 0 ? weights[i] / top : 0);
        value.textContent = weight(weights[i]);
        button.setAttribute("aria-pressed", String(query === chosen));
      });
      if (!buttons.length) return;
      const [own, all] = [weights, row].map((values) => values.reduce((a, b) => a + b, 0));
      const percent = (100 * own) / Math.max(all, 1e-12);
      share.textContent = `${percent > 0 && percent < 0.1 ? "under 0.1" : percent.toFixed(1)} % of the weight lies on ${buttons.length === 1 ? "it" : "them"}`;
    },
  };
}
