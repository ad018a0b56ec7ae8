// What is taken away from the correspondence view: CSV, and the command line that gives the same.

import { shellWord, stemOf } from "./dom.js";
import { session } from "./session.js";

// The command for what is on screen, with so many matches
export function commandOf({ facts, model, names }, look, shown) {
  const own = session.pictures.find((one) => one.handle === session.pair.a)?.name ?? "a.png";
  const pictures = look.check === "none" ? `${shellWord(names.a)} ${shellWord(names.b)}` : `${shellWord(own)} --check ${look.check} --seed ${look.seed}`;
  return `python -m analysis match ${pictures} --model ${shellWord(model.typed)} --rule ${look.rule} --facet ${facts.facet} --layer ${facts.layer} ` +
    `--size ${facts.size} --n ${Math.max(1, shown)}${look.front === "none" ? "" : ` --foreground ${look.front}`}${look.position ? "" : " --no-position"} --out matches.png`;
}

export const fileName = ({ names }, suffix) => `${stemOf(names.a)}-${stemOf(names.b)}-matches.${suffix}`;

// The matches on screen, or the cosines of a heat map: patches, and their middles in pixels of the originals
export function csvOf({ frames }, { patches, scores, shown }, heat) {
  const spot = (side, patch) => [Math.floor(patch / frames[side].columns), patch % frames[side].columns];
  const middle = (side, patch) => frames[side].centre(patch).map((px) => px.toFixed(2));
  const lines = heat
    ? [["row", "column", "x_px", "y_px", "cosine"], ...heat.order.map((patch) => [...spot(heat.side, patch), ...middle(heat.side, patch), heat.values[patch].toPrecision(7)])]
    : [["row_a", "column_a", "row_b", "column_b", "x_a_px", "y_a_px", "x_b_px", "y_b_px", "cosine"], ...shown.map((match) => {
      const [a, b] = [patches[2 * match], patches[2 * match + 1]];
      return [...spot("a", a), ...spot("b", b), ...middle("a", a), ...middle("b", b), scores[match].toPrecision(7)];
    })];
  return `${lines.map((cells) => cells.join(",")).join("\n")}\n`;
}
