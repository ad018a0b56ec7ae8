// The input size in the tab Compare: one long side in px at which both models read the picture.

import { h } from "./dom.js";
import { gridAt } from "./frame.js";

const patchOf = ({ attention_sizes: [[px, patches]] }) => px / patches;

// Sizes that the tab Attention offers for one of two models, and that are whole patches of the other too
export function sizesOfBoth(a, b) {
  const offered = [...a.attention_sizes, ...b.attention_sizes].map(([px]) => px);
  return [...new Set(offered)].filter((px) => canRead(a, px) && canRead(b, px)).sort((one, other) => one - other);
}

function canRead(model, px) { // as `can_read` of ui/facts.py
  const sizes = model.attention_sizes.map(([one]) => one);
  return sizes.includes(px) || (sizes[0] < px && px < sizes.at(-1) && px % patchOf(model) === 0);
}

// `onpick(px)`, null for each model's own
export function sizeChoice(onpick) {
  const select = h("select", { "aria-label": "Input size of both", onchange: () => onpick(Number(select.value) || null) });
  const none = h("span", { class: "meta" }, "Both have no other size in common.");
  const node = h("label", { class: "fld" }, h("span", { class: "lab" }, "Input size, patches"), select, none);
  let stamp = "";

  // `models` of both sides; `frames` of their maps on screen, else null: a square picture stands for it
  function show(models, frames, chosen) {
    const grid = (i, px) => {
      const { rows, columns } = gridAt(frames[i] ?? { width: 1, height: 1, patch_px: patchOf(models[i]) }, px);
      return `${rows}×${columns}`;
    };
    const words = (px) => `${px} px: A ${grid(0, px)}, B ${grid(1, px)}`;
    const [a, b] = models.map((model) => model.size);
    const own = a === b ? words(a) : `Own: A ${a} px, ${grid(0, a)}; B ${b} px, ${grid(1, b)}`;
    const sizes = sizesOfBoth(...models).filter((px) => px !== a || px !== b);
    const choices = [["", own], ...sizes.map((px) => [px, words(px)])];
    if (stamp !== String(choices)) {
      stamp = String(choices);
      select.replaceChildren(...choices.map(([value, text]) => h("option", { value }, text)));
    }
    select.value = chosen ?? "";
    select.disabled = !sizes.length;
    none.hidden = Boolean(sizes.length);
  }

  return { node, show };
}
