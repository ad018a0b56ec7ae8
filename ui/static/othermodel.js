// Choosing a model to stand beside the one that is shown: by its source, from what is here, or by a suggestion.

import { get } from "./ask.js";
import { h, note } from "./dom.js";
import { bring } from "./opening.js";
import { session } from "./session.js";

const FEW = 6; // suggestions of a kind

// `changed` hears when another model is there, or none any more; `busy` when one is on its way, or no longer
export function otherModel({ id, changed, busy = () => {} }) {
  const sources = h("datalist", { id });
  const input = h("input", { type: "text", list: id, placeholder: "another model's source", "aria-label": "Compare with", autocomplete: "off", spellcheck: "false", onchange: () => choose(input.value.trim()), onfocus: () => { if (session.ready) offers(); } });
  const said = h("div", { class: "meta", role: "status" });
  let model = null; // its facts
  let turn = 0;
  let isOpening = false;
  let listed = null; // the source of the shown model that the list was made for

  async function choose(source) {
    const mine = ++turn;
    input.value = source;
    said.textContent = "";
    isOpening = Boolean(source);
    if (!source) {
      model = null;
      changed();
      return;
    }
    busy();
    const answer = await bring(source, () => mine !== turn, (told) => { said.textContent = told.state === "loading" ? `Opening it: ${told.words}` : ""; });
    if (mine !== turn) return;
    isOpening = false;
    busy();
    if (answer.error) {
      said.replaceChildren(note(answer.error));
      return;
    }
    ({ model } = answer);
    changed();
  }

  function cancel() { // of one on its way; the model before stays
    turn++;
    isOpening = false;
    input.value = model?.source ?? "";
    said.textContent = "";
    busy();
  }

  // What can be chosen beside the shown model: [{title, rows: [{source, title, words}]}], the few nearest of each kind.
  // null when the shown model is no longer the one that this was asked for.
  async function offers() {
    const { source } = session.facts.model;
    listed = source;
    const [models, kept] = await Promise.all([get("api/models"), get("api/checkpoints")]);
    if (listed !== source) return null;
    const here = Object.values(models.groups ?? {}).flat().filter((entry) => entry.cached && entry.source !== source);
    const checkpoints = nearest(Array.isArray(kept) ? kept.filter((entry) => entry.source !== source) : [], source);
    sources.replaceChildren(...[...here, ...checkpoints].map((entry) => h("option", { value: entry.source }, entry.title)));
    const groups = [
      { title: "Checkpoints of runs", rows: checkpoints.slice(0, FEW).map((entry) => ({ ...entry, words: "" })) },
      { title: "Models here", rows: here.slice(0, FEW).map((entry) => ({ source: entry.source, title: entry.title, words: entry.note })) },
      { title: "Untrained", rows: models.typed ? [untrained(session.facts.model)] : [] },
    ];
    return groups.filter((group) => group.rows.length);
  }

  return {
    input, sources, said, choose, offers, cancel,
    get model() { return model; },
    get isOpening() { return isOpening; },
    swapped(next) { // takes `next` in place of the model that it returns, without a word to `changed`
      const before = model;
      model = next;
      cancel();
      return before;
    },
  };
}

// Those of the run whose checkpoint or bundle is shown come first
function nearest(checkpoints, source) {
  const run = source.startsWith("run:") ? source.split("@")[0] : null;
  const isOwn = (entry) => entry.source.split("@")[0] === run;
  return [...checkpoints.filter(isOwn), ...checkpoints.filter((entry) => !isOwn(entry))];
}

// The same architecture with random weights; of one that has them already, another draw
function untrained({ source, architecture }) {
  const [, seed] = /^random:[^@]+(?:@(\d+))?$/.exec(source) ?? [];
  if (!source.startsWith("random:")) return { source: `random:${architecture}`, title: `${architecture}, untrained`, words: "random weights: what the architecture does without training" };
  const next = Number(seed ?? 0) + 1;
  return { source: `random:${architecture}@${next}`, title: `${architecture}, seed ${next}`, words: "other random weights" };
}
