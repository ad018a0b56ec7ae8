// The header: mark, name, the model, jobs, device, offline, theme; and the dialogs behind them.

import { get } from "./ask.js";
import { h, icon, onTheme, showTab } from "./dom.js";
import { jobsChip } from "./jobs.js";
import { opening } from "./opening.js";
import { picker } from "./picker.js";
import { publishDialog } from "./publish.js";
import { rememberDialog } from "./remember.js";
import { doors, session, writeLink } from "./session.js";

const LOOK_MS = 10_000; // between two looks at whether a run still trains

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

// The tab that the address names is opened, and the address names the one that is open
function keepTab() {
  const tabs = document.getElementById("tabs");
  if (!tabs?.querySelector("button[role=tab]")) { requestAnimationFrame(keepTab); return; }
  const wanted = session.link.get("tab");
  if (wanted) showTab(wanted[0].toUpperCase() + wanted.slice(1));
  const bringIn = (tab) => tab?.scrollIntoView({ block: "nearest", inline: "nearest" }); // the row scrolls on a phone
  requestAnimationFrame(() => bringIn(tabs.querySelector(":scope > .tab-wrapper button[aria-selected=true]")));
  tabs.addEventListener("click", ({ target }) => {
    const tab = target.closest("#tabs > .tab-wrapper button[role=tab]");
    if (!tab) return;
    bringIn(tab);
    writeLink({ tab: tab.textContent.trim().toLowerCase() });
  });
}

export function mount({ element, upload }) {
  keepTab();
  const models = picker();
  const jobs = jobsChip();
  const started = (id) => jobs.started(id);
  const remember = rememberDialog({ upload, started });
  const publish = publishDialog({ started });
  Object.assign(doors, { models: models.show, remember: remember.show, publish: publish.show, jobs: jobs.look, training: lookAgain });

  const model = h("button", { type: "button", class: "chip model", "aria-haspopup": "dialog", onclick: models.show });
  const coming = h("span", { class: "meta coming", role: "status" });
  const device = h("span", { class: "chip hide-s" });
  const offline = h("span", { class: "chip hide-s" }, h("i", { class: "dot" }), "Offline");
  const problem = h("div", { class: "hdrnote" });
  const banner = h("span", { class: "meta banner hide-s", role: "status" }); // what a run that trains here means for the other tabs
  const small = h("p", { class: "meta hdrnote show-s", role: "status" });

  // a run has begun or ended, so the models may be on another device now
  let timer = null;
  async function lookAgain() {
    clearTimeout(timer);
    const { banner: words, device: where, error } = document.hidden ? session.facts : await get("api/facts");
    if (!error && (words !== session.facts.banner || where !== session.facts.device)) {
      Object.assign(session.facts, { banner: words, device: where });
      session.tell();
    }
    clearTimeout(timer);
    timer = session.facts.banner ? setTimeout(lookAgain, LOOK_MS) : null;
  }
  element.append(h("div", { class: "hdr" }, h("h1", {}, mark(), "MaSSL"), model, coming, jobs.chip, device, offline, banner, h("span", { class: "sp" }), themeSwitch()),
    small, problem, models.node, jobs.node, remember.node, publish.node);

  session.hear(() => {
    const { state, model: it, offline: cut, device: where } = session.facts;
    const words = { starting: "opening the model", failed: "no model", ready: "" }[state];
    model.disabled = state !== "ready";
    model.replaceChildren(h("b", {}, it?.name ?? session.facts.source ?? "model"), h("span", { class: "hide-s" }, state === "ready" ? it.line : words), ...(state === "ready" ? [icon("down")] : []));
    device.hidden = !where;
    device.replaceChildren(icon("chip"), where ?? "");
    offline.hidden = !cut;
    banner.textContent = banner.title = small.textContent = session.facts.banner ?? "";
    if (session.facts.banner && !timer) timer = setTimeout(lookAgain, LOOK_MS);
  });
  opening.hear(() => { // when the picker is closed, what it would say stands here
    const { now, problem: what } = opening;
    coming.textContent = now && performance.now() - now.since > 300 ? `opening ${now.title}` : "";
    const told = what && !document.getElementById("models").open;
    problem.replaceChildren(...(told ? [h("div", { class: "note", role: "alert" }, h("span", {}, h("b", {}, what.title), " ", what.source ? `${what.source}: ` : "", what.text),
      h("button", { type: "button", class: "btn quiet icon", "aria-label": "Close", onclick: () => opening.forget() }, icon("close")))] : []));
  });
}
