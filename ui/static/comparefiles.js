// What is taken away from the tab Compare: CSV, and the command line that gives the same. A map on screen is what
// compare.js shows of a side, with {side, layer, head}.

import { shellWord } from "./dom.js";
import { MEMORIES } from "./comparememories.js";

// The command for a picture under two models; of both maps, null where there is none, B's own choices stand where they
// are not those of A. `from`: the side whose patch is asked; B's goes as a place. `probe`: the set the models were compared on.
export function commandOf(file, [modelA, modelB], [a, b], from, probe) {
  const flag = (name, value) => ` --${name} ${value}`;
  let maps = "";
  if (a && b) {
    const [ofA, ofB] = [a, b].map((one) => ({ layer: one.layer, head: one.head, size: one.maps.facts.size }));
    const own = Object.keys(ofB).filter((name) => ofB[name] !== ofA[name]);
    const query = from === "b" && typeof b.query === "number" ? b.frame.centre(b.query).map(roundUp).join(",") : a.query;
    maps = [flag("layer", a.layer), flag("head", a.head), flag("query", query), flag("size", ofA.size), ...own.map((name) => flag(`other-${name}`, ofB[name]))].join("");
  }
  const set = probe && { drawn: "drawn", [`memory-${modelA.handle}`]: "memory" }[probe];
  return `python -m analysis compare ${shellWord(file)} --model ${shellWord(modelA.typed)} --other ${shellWord(modelB.typed)}${maps} --k ${MEMORIES}`
    + `${set ? flag("probe", set) : ""}${maps ? flag("out", "compare.png") : ""}`;
}

const roundUp = (px) => Math.ceil(px * 1e4) / 1e4; // so that a place on the edge of a patch of A stays in that patch

// Maps on screen: block and head from 0, the middles of patches in pixels of the original picture
export function csvOf(shown) {
  const lines = shown.flatMap(({ side, model, maps, frame, layer, head }) => {
    const weights = maps.map(layer, head);
    return Array.from({ length: maps.patches }, (_, patch) => [
      side.toUpperCase(), `"${model.source.replaceAll('"', '""')}"`, layer, head, Math.floor(patch / maps.columns), patch % maps.columns,
      ...frame.centre(patch).map((px) => px.toFixed(2)), weights[patch].toPrecision(7)].join(","));
  });
  return `${["side,model,block,head,row,column,x_px,y_px,weight", ...lines].join("\n")}\n`;
}
