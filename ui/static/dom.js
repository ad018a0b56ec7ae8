// Small things every view needs: elements, icons, numbers. File names and classes are hostile: text goes in as text.

export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(node.style, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

const ICONS = {
  plus: "M8 3v10M3 8h10",
  minus: "M3 8h10",
  sun: "M8 5.2a2.8 2.8 0 1 0 0 5.6 2.8 2.8 0 0 0 0-5.6M8 1.2v1.4M8 13.4v1.4M1.2 8h1.4M13.4 8h1.4M3.2 3.2l1 1M11.8 11.8l1 1M3.2 12.8l1-1M11.8 4.2l1-1",
  moon: "M13 9.6A5.4 5.4 0 0 1 6.4 3a5.4 5.4 0 1 0 6.6 6.6",
  chip: "M4.5 4.5h7v7h-7zM6 1.8v2.7M10 1.8v2.7M6 11.5v2.7M10 11.5v2.7M1.8 6h2.7M1.8 10h2.7M11.5 6h2.7M11.5 10h2.7",
  down: "M4.5 6.5 8 10l3.5-3.5",
  close: "M4 4l8 8M12 4l-8 8",
  back: "M9.5 4.5 6 8l3.5 3.5",
  folder: "M2 4.2h4l1.4 1.6H14v6.4H2z",
  table: "M2.5 3.5h11v9h-11zM2.5 6.5h11M6.5 6.5v6",
  swap: "M2.5 5.5h10M10 3l2.5 2.5L10 8M13.5 10.5h-10M6 8l-2.5 2.5L6 13",
  link: "M6.8 9.2a2.4 2.4 0 0 0 3.4 0l2.3-2.3a2.4 2.4 0 0 0-3.4-3.4l-.8.8M9.2 6.8a2.4 2.4 0 0 0-3.4 0L3.5 9.1a2.4 2.4 0 0 0 3.4 3.4l.8-.8",
};

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "i");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(svg.namespaceURI, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

// 131072 -> "131 072" with thin spaces
export const count = (n) => String(Math.round(n)).replace(/\B(?=(\d{3})+$)/g, "\u2009");

export function weight(w) {
  if (w === 0) return "0";
  return w >= 0.001 ? w.toFixed(4) : w.toExponential(1);
}

export function bytes(n) {
  if (n === null || n === undefined) return "size unknown";
  return n >= 1e9 ? `${(n / 1e9).toFixed(1)} GB` : n >= 1e6 ? `${(n / 1e6).toFixed(n < 1e7 ? 1 : 0)} MB` : `${Math.max(Math.sign(n), Math.round(n / 1e3))} kB`;
}

// A stretch of time in words: "12 s", "3 min", "1 h 20 min"
export function duration(s) {
  if (s < 60) return `${Math.max(1, Math.round(s))} s`;
  const minutes = Math.round(s / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export const seconds = (s) => (s < 0.095 ? `${Math.max(1, Math.round(s * 1000))} ms` : `${s.toFixed(1)} s`);

// A word for a POSIX shell
export const shellWord = (text) =>
  /^[\w./:@+-]+$/.test(text) && !text.startsWith("-") ? text : `'${text.replaceAll("'", "'\\''")}'`;

// A range input with its label above and its value, bold, on the same line
export function slider(label, { min, max, value, words = (v) => `${v} %`, oninput }) {
  const shown = h("b");
  const input = h("input", { type: "range", min, max, value, "aria-label": label });
  const show = () => {
    const [low, high] = [Number(input.min), Number(input.max)];
    shown.textContent = words(Number(input.value));
    input.style.setProperty("--p", `${(100 * (input.value - low)) / Math.max(1, high - low)}%`);
    input.setAttribute("aria-valuetext", shown.textContent);
  };
  input.addEventListener("input", () => { show(); oninput(Number(input.value)); });
  show();
  return {
    node: h("label", { class: "fld" }, h("span", { class: "lab" }, label, shown), input),
    get value() { return Number(input.value); },
    set value(v) { input.value = v; show(); },
    range(low, high) { Object.assign(input, { min: low, max: high }); show(); },
    input,
  };
}

export function toggle(label, on, onchange) {
  const input = h("input", { type: "checkbox", role: "switch" });
  input.checked = on;
  input.addEventListener("change", () => onchange(input.checked));
  return h("label", { class: "sw" }, input, label);
}

// Buttons of which one is pressed: choices [[value, label], ...]
export function segmented(label, choices, value, onpick) {
  const buttons = choices.map(([name, text]) =>
    h("button", { type: "button", "aria-pressed": String(name === value), "data-value": name, onclick: () => onpick(name) }, text));
  return {
    node: h("div", { class: "seg", role: "group", "aria-label": label }, buttons),
    press(name) {
      for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.value === name));
    },
    button: (name) => buttons.find((button) => button.dataset.value === name),
  };
}

// `done` once nothing has called this for a while
export function rested(ms, done) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(done, ms);
  };
}

export function commandLine() {
  const code = h("code", { tabindex: "0", role: "textbox", "aria-readonly": "true", "aria-label": "Command line" });
  const button = h("button", { type: "button", class: "btn quiet" }, "Copy");
  let timer;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // no clipboard here: the text is selected for the person
      button.textContent = "Selected";
    }
    clearTimeout(timer);
    timer = setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return {
    node: h("div", { class: "cmd" }, h("span", { class: "lab hide-s" }, "Command line"), code, button),
    set text(value) { code.textContent = value; },
  };
}

export function note({ title, text }) {
  return h("div", { class: "note", role: "alert" }, h("b", {}, title), " ", text);
}

export function showTab(name) {
  [...document.querySelectorAll("#tabs button[role=tab]")].find((tab) => tab.textContent.trim() === name)?.click();
}

// The name of a picture's file without suffix, as far as a file system takes it
export const stemOf = (file) => file.replace(/\.[^.]*$/, "").replace(/[^\w-]+/g, "-") || "picture";

// A picture of the tray, decoded
export async function loadPhoto(handle) {
  const photo = h("img", { alt: "", src: `api/picture/${handle}`, "data-handle": handle });
  await photo.decode();
  return photo;
}

export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

// Call `changed` whenever light turns dark or back
export function onTheme(changed) {
  new MutationObserver(changed).observe(document.body, { attributes: true, attributeFilter: ["class"] });
}
