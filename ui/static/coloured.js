// All attention heads in one picture: each patch in the colour of the head that looks at it most. Nothing is asked.

import { drawPatches, patchImage, sideStage, whenSeen } from "./besidestage.js";
import { h, slider, weight } from "./dom.js";
import { looking } from "./looking.js";
import { firstColours, headWords, owners, pickColour, ranked } from "./owners.js";

const PLACES = 7; // Okabe-Ito, --ui-c1 to --ui-c7
const MASS = 0.6; // iBOT, visualize_attention.py --threshold

export function colouredPanel({ panel, opacity }) {
  const stage = sideStage("All heads coloured", { onhover: (patch) => { hover = patch; say(); } });
  const chips = h("div", { class: "headchips", role: "group", "aria-label": "Heads with a colour" });
  const keep = slider("Each head keeps", { min: 5, max: 100, value: 100 * MASS, oninput: (v) => { mass = v / 100; seen.isNew(); } });
  const { node, tell, command, shape } = panel({
    title: "All heads coloured", meta: "by the strongest head", stages: [stage], controls: [keep.node, chips], png: () => stage.picture(paint),
  });
  let mass = MASS;
  let hover = null;
  let colours = []; // of each head its place among the colours, or null
  let of = null; // what of `looking.shown` is drawn
  let sorted = null; // {maps, layer, heads}: of the block on screen
  let owned = null;
  let buttons = [];
  const seen = whenSeen(node, draw);

  function palette() {
    const style = getComputedStyle(node);
    const read = (i) => { const hex = parseInt(style.getPropertyValue(`--ui-c${i}`).trim().slice(1), 16); return [hex >> 16, (hex >> 8) & 255, hex & 255]; };
    return Array.from({ length: PLACES + 1 }, (_, i) => read(i));
  }
  function paint(context, { area }) {
    const { rows, columns } = of.maps;
    const levels = palette();
    const image = patchImage(rows, columns, (patch) => (owned[patch] < 0 ? null : [...levels[(colours[owned[patch]] ?? -1) + 1], 255 * opacity.value]));
    context.fillStyle = `rgb(12 15 19 / ${0.4 * opacity.value})`; // what no head keeps steps back
    context.fillRect(...area);
    drawPatches(context, image, area);
  }
  function draw() {
    if (!looking.shown) return;
    of = looking.shown;
    const { maps, layer, photo, handle, frame } = of;
    if (sorted?.maps !== maps || sorted.layer !== layer) {
      sorted = { maps, layer, heads: ranked(Array.from({ length: maps.heads }, (_, head) => maps.map(layer, head))) };
    }
    owned = owners(sorted.heads, mass);
    stage.show(handle, photo, frame, maps.facts.frame);
    stage.draw(paint);
    showChips();
    say();
    command({ verb: "attention", show: "coloured", out: "coloured.png", more: ` --mass ${mass}${isFirst() ? "" : ` --heads ${headWords(colours, PLACES)}`}` });
  }
  const isFirst = () => colours.every((place, head) => place === (head < PLACES ? head : null));

  function isNew() {
    if (looking.shown && colours.length !== looking.shown.maps.heads) { // at once, as the chips take their room
      colours = firstColours(looking.shown.maps.heads, PLACES);
      buttons = colours.map((_, head) => h("button", { type: "button", class: "headchip", onclick: () => { colours = pickColour(colours, head, PLACES); seen.isNew(); } }, h("i", { class: "dot" }), h("span", {}, `Head ${head + 1}`), h("span", { class: "meta" })));
      chips.replaceChildren(...buttons);
    }
    seen.isNew();
  }
  function showChips() {
    const isFull = colours.filter((place) => place !== null).length >= PLACES;
    const counts = new Int32Array(colours.length);
    for (const head of owned) if (head >= 0) counts[head] += 1;
    buttons.forEach((button, head) => {
      const [dot, , share] = button.children;
      const place = colours[head];
      dot.className = `dot c${place === null ? 0 : place + 1}`;
      share.textContent = `${Math.round((100 * counts[head]) / owned.length)} %`;
      button.setAttribute("aria-pressed", String(place !== null));
      button.disabled = place === null && isFull;
      button.title = button.disabled ? "Seven heads have colours; press one of them first" : "";
    });
  }
  function say() {
    if (!of) return;
    const { maps, layer } = of;
    const held = owned.filter((head) => head >= 0).length;
    const at = (patch) => `row ${Math.floor(patch / maps.columns)}, column ${patch % maps.columns}`;
    const words = hover === null
      ? `${Math.round((100 * held) / owned.length)} % of the patches are kept by a head${colours.includes(null) ? "; grey is a head without a colour" : ""}`
      : `${at(hover)}: ${owned[hover] < 0 ? "kept by no head" : `head ${owned[hover] + 1}, weight ${weight(maps.map(layer, owned[hover])[hover])}`}`;
    tell(words);
    const most = Array.from(colours.keys()).map((head) => [owned.filter((one) => one === head).length, head]).sort((a, b) => b[0] - a[0])[0];
    if (hover === null) stage.overlay.setAttribute("aria-label", `Heads of block ${layer + 1} coloured. Head ${most[1] + 1} has most patches, ${most[0]} of ${owned.length}. Arrow keys move the query patch.`);
  }
  return { node, shape, isNew };
}
