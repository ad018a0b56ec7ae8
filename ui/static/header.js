// The header: mark, name, the model and its card, device, offline, theme.

import { count, h, icon, note, onTheme } from "./dom.js";
import { session } from "./session.js";

function mark() {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("aria-hidden", "true");
  const shades = [1, 0.35, 0.7, 0.35, 0.7, 0.2, 0.7, 0.2, 0.35];
  shades.forEach((shade, i) => {
    const square = document.createElementNS(svg.namespaceURI, "rect");
    const at = { x: 1 + 6.5 * (i % 3), y: 1 + 6.5 * Math.floor(i / 3), width: 5, height: 5, rx: 1, fill: "currentColor", opacity: shade };
    for (const [name, value] of Object.entries(at)) square.setAttribute(name, value);
    svg.append(square);
  });
  return svg;
}

function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

function themeSwitch() {
  const choices = [["light", "sun"], ["dark", "moon"]].map(([theme, name]) =>
    h("button", { type: "button", "aria-label": `${theme === "light" ? "Light" : "Dark"} theme`, title: `${theme} theme`, onclick: () => choose(theme) }, icon(name)));
  const show = () => {
    const dark = document.body.classList.contains("dark");
    choices.forEach((button, i) => button.setAttribute("aria-pressed", String(dark === (i === 1))));
  };
  function choose(theme) {
    document.body.classList.toggle("dark", theme === "dark");
    try { localStorage.setItem("memssl-theme", theme); } catch { /* a browser that keeps nothing */ }
    const url = new URL(location.href);
    url.searchParams.set("__theme", theme);
    history.replaceState(history.state, "", url);
  }
  onTheme(show);
  show();
  return h("div", { class: "seg theme", role: "group", "aria-label": "Theme" }, choices);
}

export function mount({ element }) {
  const model = h("button", { type: "button", class: "chip model", "aria-haspopup": "dialog", onclick: () => card.showModal() });
  const device = h("span", { class: "chip hide-s" });
  const offline = h("span", { class: "chip hide-s" }, h("i", { class: "dot" }), "Offline");
  const body = h("div", { class: "cardbody" });
  const title = h("h2", { id: "model-card-title" });
  const card = h("dialog", { class: "modelcard ui", "aria-labelledby": "model-card-title" },
    h("div", { class: "head" }, title,
      h("button", { type: "button", class: "btn quiet icon", "aria-label": "Close", onclick: () => card.close() }, icon("close"))),
    body);
  card.addEventListener("click", (event) => { if (event.target === card) card.close(); });
  element.append(h("div", { class: "hdr" }, h("h1", {}, mark(), "MaSSL"), model, device, offline, h("span", { class: "sp" }), themeSwitch()), card);

  session.hear(() => {
    const { state, model: it, offline: cut, device: where } = session.facts;
    const words = { starting: "opening the model", failed: "no model", ready: "" }[state];
    model.disabled = !it;
    model.replaceChildren(h("b", {}, it?.name ?? session.facts.source ?? "model"), h("span", { class: "hide-s" }, it ? it.line : words), ...(it ? [icon("down")] : []));
    device.hidden = !where;
    device.replaceChildren(icon("chip"), where ?? "");
    offline.hidden = !cut;
    if (!it) return;
    title.textContent = it.name;
    body.replaceChildren(
      facts(it.facts.map(([name, value]) => [name, typeof value === "number" ? count(value) : value])),
      h("h3", {}, "Hashes"),
      facts(it.hashes.map(([name, value]) => [name, h("code", {}, value)])));
    if (it.warning) body.prepend(note({ title: "Mind.", text: it.warning }));
  });
}
