// Patch features as colours: their first three principal components, of one picture or of two together.

import { questions } from "./asking.js";
import { drawPatches, patchImage, sideStage, whenSeen } from "./besidestage.js";
import { h, loadPhoto, note, rested, seconds, shellWord, toggle } from "./dom.js";
import { framed } from "./frame.js";
import { looking } from "./looking.js";
import { session } from "./session.js";
import { unpack } from "./wire.js";

const [REST_MS, SLOW_MS] = [200, 150];
const FACETS = { token: "Tokens", key: "Keys", query: "Queries", value: "Values" };
const LATE = { title: "The colours did not arrive.", text: "Try again." };

export function pcaPanel({ panel, opacity, nameOf, props, trigger, watch }) {
  const look = { facet: null, layer: null, foreground: false, b: null };
  let found = null; // {name, key, facts, arrays, sides: [{handle, frame, colours, front}]}
  let asked = null; // {name}: the question under way
  let refused = null; // {name, error}
  let offered = null; // the model whose features are offered
  const line = questions({ props, trigger, watch });

  const stages = [sideStage("PCA colours"), sideStage("PCA colours of the second picture", { isQuery: false })];
  const facet = h("select", { "aria-label": "Kind of features", onchange: () => { look.facet = facet.value; wish(); } });
  const layer = h("select", { "aria-label": "Features after", onchange: () => { look.layer = Number(layer.value); wish(); } });
  const front = toggle("Foreground only", false, (on) => { look.foreground = on; wish(); });
  const other = h("select", { "aria-label": "Together with", onchange: () => { look.b = other.value || null; wish(); } });
  const problem = h("div", { "aria-live": "polite" });
  const npz = h("a", { class: "btn small off", download: "", "aria-label": "NPZ of PCA colours" }, "NPZ");
  const field = (words, ...parts) => h("div", { class: "fld" }, h("span", { class: "lab" }, words), parts);
  const { node, tell, typed, shape } = panel({
    title: "PCA colours", meta: "like colours, like features", stages, png: picture, links: [npz], handle: () => found?.sides[0].handle ?? session.handle,
    controls: [h("div", { class: "two" }, field("Features", facet), field("After", layer)), field("Together with", other), h("div", { class: "line" }, front), problem],
  });
  stages[1].node.hidden = true;
  const seen = whenSeen(node, () => { offer(); later(); draw(); });
  const later = rested(REST_MS, wish);

  // ---- what can be asked
  function offer() {
    const { model } = session.facts;
    if (!session.ready) return;
    const option = (value, words) => h("option", { value }, words);
    if (offered !== model.handle) {
      offered = model.handle;
      const noun = model.layer_noun === "block" ? "Block" : "Stage";
      facet.replaceChildren(...model.facets.map((name) => option(name, noun === "Block" ? FACETS[name] : "Cells of the feature map")));
      layer.replaceChildren(...Array.from({ length: model.layers }, (_, i) => option(i, `${noun} ${i + 1}`)).reverse());
      look.layer = null;
    }
    const { facet: kind, layer: from } = chosen(model);
    [facet.value, layer.value] = [kind, String(from)];
    const others = session.pictures.filter((one) => one.handle !== session.handle).map((one) => [one.handle, one.name]);
    const stamp = JSON.stringify(others);
    if (other.dataset.told === stamp) return;
    other.dataset.told = stamp;
    other.replaceChildren(option("", "None"), ...others.map((one) => option(...one)));
    if (!others.some(([handle]) => handle === look.b)) look.b = null;
    other.value = look.b ?? "";
  }
  const chosen = (model) => ({ facet: model.facets.includes(look.facet) ? look.facet : "token", layer: look.layer ?? model.layers - 1 });

  function question() {
    const { model } = session.facts;
    const { shown } = looking;
    if (!session.ready || !session.handle) return null;
    if (!model.no_attention && (shown?.handle !== session.handle || shown.model.handle !== model.handle)) return null; // the maps come first
    return { ask: "pca", model: model.handle, a: session.handle, b: look.b, ...chosen(model), size: model.no_attention ? model.size : shown.size, foreground: look.foreground };
  }

  async function wish() {
    if (!seen.isSeen) { seen.isNew(); return; } // once it is on screen again
    const next = question();
    if (!next) return;
    const name = JSON.stringify(next);
    if (name === (asked ?? found)?.name || refused?.name === name) return;
    const mine = asked = { name };
    refused = null;
    layOut(next);
    const slow = setTimeout(() => { if (asked === mine) show(); }, SLOW_MS);
    try {
      const answer = await line.ask(next);
      if (asked !== mine || !answer) return;
      if (answer.error) throw answer.error;
      const response = await fetch(`api/pca/${answer.key}`);
      if (!response.ok) throw { ...LATE, text: (await response.json()).error };
      const { facts, arrays } = unpack(await response.arrayBuffer());
      const handles = next.b ? [next.a, next.b] : [next.a];
      const photos = await Promise.all(handles.map(photoOf));
      if (asked !== mine) return;
      const sides = handles.map((handle, i) => { const side = "ab"[i]; return { handle, photo: photos[i], told: facts[`frame_${side}`], frame: framed(facts[`frame_${side}`]), colours: arrays[`colours_${side}`], front: arrays[`front_${side}`] }; });
      found = { name, key: answer.key, asked: next, model: session.facts.model, facts, sides };
    } catch (error) {
      if (asked !== mine) return;
      refused = { name, error: error.title ? error : LATE };
    } finally {
      clearTimeout(slow);
      if (asked === mine) asked = null;
    }
    show();
  }
  function photoOf(handle) {
    const kept = found?.sides.find((side) => side.handle === handle) ?? (looking.shown?.handle === handle ? looking.shown : null);
    return kept?.photo ?? loadPhoto(handle);
  }

  // ---- drawing
  function layOut({ a, b }) { // at once, so that nothing moves when the answer comes
    stages[1].node.hidden = !b;
    for (const [i, handle] of [a, b].entries()) {
      const picture = session.pictures.find((one) => one.handle === handle);
      if (picture?.width) stages[i].shape(picture.width, picture.height);
    }
  }
  const painted = ({ frame, colours, front: inFront }, hasFront) => (context, { area }) => {
    const image = patchImage(frame.rows, frame.columns, (patch) => (hasFront && !inFront[patch] ? [0, 0, 0, 190 * opacity.value] : [...colours.subarray(3 * patch, 3 * patch + 3), 255 * opacity.value]));
    drawPatches(context, image, area);
  };
  function draw() {
    if (!found) return;
    for (const [i, side] of found.sides.entries()) {
      stages[i].show(side.handle, side.photo, side.frame, side.told);
      stages[i].draw(painted(side, found.asked.foreground));
    }
  }
  function show() {
    node.classList.toggle("old", Boolean(found && (asked || refused)));
    problem.replaceChildren(...(refused ? [note(refused.error)] : []));
    if (asked) { tell(`Running ${session.facts.model.name}${found ? "; the previous colours stay until the new ones are there" : ""}`); return; }
    if (!found) return;
    const { sides, facts, asked: question, model, key } = found;
    stages[1].node.hidden = sides.length < 2;
    draw();
    const noun = model.layer_noun === "block" ? "block" : "stage";
    const shares = facts.explained.map((share) => `${(100 * share).toFixed(0)}`).join(", ");
    tell(`The three components hold ${shares} % of the variance${question.foreground ? " in the foreground" : ""} · ${seconds(facts.time_s)} on ${facts.device}`);
    for (const [i, stage] of stages.entries()) {
      stage.tag.hidden = sides.length < 2;
      stage.tag.textContent = sides[i] ? nameOf(sides[i].handle) : "";
      const side = sides[i];
      if (!side) continue;
      const moves = i || model.no_attention ? "" : ". Arrow keys move the query patch.";
      stage.overlay.setAttribute("aria-label", `First three components of ${FACETS[question.facet].toLowerCase()} after ${noun} ${question.layer + 1} as colours, ` +
        `${nameOf(side.handle)}, ${side.frame.rows}×${side.frame.columns} cells${moves}`);
    }
    npz.href = `api/pca/${key}/npz`;
    npz.classList.remove("off");
    typed(`python -m analysis pca ${sides.map((side) => shellWord(nameOf(side.handle))).join(" ")} --model ${shellWord(model.typed)} --facet ${question.facet} --layer ${question.layer} ` +
      `--size ${question.size} --${question.foreground ? "" : "no-"}foreground --out pca.png`);
  }
  function picture() { // both beside each other, at the height of the taller
    const parts = found.sides.map((side, i) => stages[i].picture(painted(side, found.asked.foreground)));
    if (parts.length === 1) return parts[0];
    const height = Math.max(...parts.map((part) => part.height));
    const widths = parts.map((part) => Math.round((part.width * height) / part.height));
    const canvas = h("canvas", { width: widths[0] + widths[1], height });
    const context = canvas.getContext("2d");
    context.drawImage(parts[0], 0, 0, widths[0], height);
    context.drawImage(parts[1], widths[0], 0, widths[1], height);
    return canvas;
  }
  return { node, shape, isNew: seen.isNew };
}
