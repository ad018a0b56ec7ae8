// Beside the attention view: all heads in one picture, the lengths of patch tokens, and their first components as colours.

import { colouredPanel } from "./coloured.js";
import { commandLine, h, onTheme, save, shellWord, slider, stemOf } from "./dom.js";
import { looking } from "./looking.js";
import { normPanel } from "./normview.js";
import { pcaPanel } from "./pcaview.js";
import { session } from "./session.js";

const nameOf = (handle) => session.pictures.find((one) => one.handle === handle)?.name ?? "picture.png";

export function mount({ element, props, trigger, watch }) {
  const opacity = { value: 0.75 };
  const strength = slider("Strength of the colours", { min: 0, max: 100, value: 75, oninput: (v) => { opacity.value = v / 100; panels.forEach((one) => one.isNew()); } });
  const shared = { panel, opacity, nameOf };
  const title = h("h2", { id: "beside-title" }, "Beside it");
  const about = h("span", { class: "meta" });
  const [coloured, norms] = [colouredPanel(shared), normPanel(shared)];
  const pca = pcaPanel({ ...shared, props, trigger, watch });
  const panels = [coloured, norms, pca];
  const figures = h("div", { class: "besides" }, panels.map((one) => one.node));
  const section = h("section", { class: "beside", "aria-labelledby": "beside-title" },
    h("div", { class: "besidehead" }, title, about, strength.node), figures);
  element.append(section);

  // A figure: title, stages, one line of what is seen, controls, what can be taken away, the command line.
  // `png()` gives a canvas; `links` stand beside its button; `handle()` is the picture on the stage
  function panel({ title, meta, stages, controls, png, links = [], handle = () => stages[0].shown?.handle }) {
    const told = h("p", { class: "meta told" });
    const line = commandLine();
    const file = `${title.toLowerCase().replace(/\W+/g, "-")}.png`;
    const button = h("button", { type: "button", class: "btn small", disabled: true, "aria-label": `PNG of ${title}`, onclick: () =>
      png().toBlob((blob) => save(blob, `${stemOf(nameOf(handle()))}-${file}`), "image/png") }, "PNG");
    const body = h("div", { class: "sidebody" }, h("div", { class: "sidestages" }, stages.map((stage) => stage.node)), told, controls, h("div", { class: "line" }, button, links), line.node);
    const node = h("figure", { class: "besidefig", "aria-label": title }, h("div", { class: "head" }, h("h3", {}, title), h("span", { class: "meta" }, meta)), body);
    return {
      node,
      shape({ width, height }) { stages[0].shape(width, height); },
      tell(words) { told.textContent = words; },
      // `more` is what else the command takes, with a space before it
      command({ verb, show, out, more = "" }) {
        button.disabled = false;
        const { model, layer, query, size } = looking.shown;
        line.text = `python -m analysis ${verb} ${shellWord(nameOf(handle()))} --model ${shellWord(model.typed)} --layer ${layer} --query ${query} --size ${size} --show ${show}${more} --out ${out}`;
      },
      typed(words) {
        button.disabled = false;
        line.text = words;
      },
    };
  }

  let stamp = null;
  function changed() {
    const { shown } = looking;
    const { state, model } = session.facts;
    const now = JSON.stringify([shown?.key, shown?.layer, state, model?.handle, session.handle, session.pictures.map((one) => one.handle)]);
    if (now === stamp) return; // another head, mass or opacity of the view changes nothing here
    stamp = now;
    const refused = (session.ready && model.no_attention) || null;
    section.hidden = state === "failed";
    for (const one of [coloured, norms]) one.node.hidden = Boolean(refused);
    figures.classList.toggle("alone", Boolean(refused));
    title.textContent = refused ? "Features" : "Beside it";
    figures.classList.toggle("old", !shown && !refused);
    about.textContent = shown && !refused ? `block ${shown.layer + 1}, from ${queryWords(shown)}; a click asks from that patch` : "";
    if (shown) for (const one of panels) one.shape(shown.maps.facts.frame);
    panels.forEach((one) => one.isNew());
  }
  function queryWords({ query, model, maps }) {
    if (typeof query === "number") return `patch ${Math.floor(query / maps.columns)}, ${query % maps.columns}`;
    const [kind, index] = query.split(":");
    return kind === "register" ? `register ${Number(index) + 1}` : kind === "mean" ? "the mean over patches" : kind === "cls" ? "class token" : model.whole[1];
  }
  looking.hear(changed);
  session.hear(changed);
  onTheme(() => panels.forEach((one) => one.isNew()));
  new ResizeObserver(() => panels.forEach((one) => one.isNew())).observe(element);
}
