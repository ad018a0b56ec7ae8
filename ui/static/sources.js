// "Pictures from": a declared folder, or a file in it, the drawn gallery, a data set of the Hub, or an upload.

import { get } from "./ask.js";
import { bytes, count, h, icon, segmented } from "./dom.js";

const MAX_UPLOADS = 200;
const ZIP = /\.zip$/i;
const TITLES = { folder: "Folder", drawn: "Drawn gallery", hub: "Hub data set", uploads: "Upload", zip: "Zip file" };

// `kinds`: what is offered, where the server allows it. `left` hears that what was chosen no longer is, `chosen` that
// something is, `typed` a keystroke, `failed` why a folder cannot be shown. `drawn`: the first count of that gallery.
export function sources({ kinds, drawn: first = 1000, left, chosen, typed, failed }) {
  let kind = null;
  let at = { root: "", path: "" };
  let table = null; // the name of a table or zip in that folder, when it is what was chosen
  const picked = { uploads: [], zip: [] }; // files
  let choices;

  const offered = h("div");
  const roots = h("select", { "aria-label": "Folder", onchange: () => enter(roots.value, "") });
  const crumbs = h("div", { class: "crumbs" });
  const folders = h("ul", { class: "folders" });
  const drawn = h("input", { type: "number", min: "1", max: "100000", value: String(first), oninput: typed });
  const hub = h("input", { type: "text", class: "mono", placeholder: "OWNER/NAME, if need be :SPLIT", autocomplete: "off", spellcheck: "false", oninput: typed });
  const chooser = (which, props) => {
    const input = h("input", { type: "file", class: "file", tabindex: "-1", "aria-hidden": "true", ...props, onchange: () => { picked[which] = [...input.files]; showFiles(); chosen(); } });
    return { input, told: h("span", { class: "meta" }) };
  };
  const choosers = { uploads: chooser("uploads", { multiple: true, accept: "image/*" }), zip: chooser("zip", { accept: ".zip,application/zip" }) };
  const chooserPanel = (which, words) => h("div", { class: "line" }, h("button", { type: "button", class: "btn", onclick: () => choosers[which].input.click() }, words), choosers[which].input, choosers[which].told);
  const panels = {
    folder: h("div", { class: "browse" }, h("div", { class: "line" }, roots, crumbs), folders),
    drawn: h("label", { class: "fld" }, h("span", { class: "lab" }, "Pictures of the drawn gallery"), drawn),
    hub: h("label", { class: "fld" }, h("span", { class: "lab" }, "Data set on the Hub"), hub),
    uploads: chooserPanel("uploads", "Choose pictures"),
    zip: chooserPanel("zip", "Choose a zip"),
  };

  function choose(which) {
    kind = which;
    for (const [one, panel] of Object.entries(panels)) panel.hidden = one !== kind;
    choices.press(kind);
    if (kind === "folder") enter(at.root || roots.value, at.path, table);
    else chosen();
  }

  async function enter(root, path, within = null) {
    at = { root, path };
    table = within;
    left();
    const answer = await get(`api/folders?root=${encodeURIComponent(root)}&path=${encodeURIComponent(path)}`);
    if (kind !== "folder" || at.root !== root || at.path !== path) return;
    const steps = path ? path.split("/") : [];
    crumbs.replaceChildren(...[root, ...steps].map((step, i, all) =>
      i === all.length - 1 ? h("b", {}, step) : h("button", { type: "button", class: "btn quiet small", onclick: () => enter(root, steps.slice(0, i).join("/")) }, step, " /")));
    if (answer.error) {
      folders.replaceChildren();
      failed(answer.error);
      return;
    }
    const here = answer.pictures ? `${count(answer.pictures)} picture${answer.pictures > 1 ? "s" : ""} here` : "no pictures directly here";
    folders.replaceChildren(
      ...answer.folders.map((one) => h("li", {}, h("button", { type: "button", class: "row", onclick: () => enter(root, [...steps, one].join("/")) }, icon("folder"), h("span", {}, one)))),
      ...[...(answer.tables ?? []), ...(kinds.includes("zip") ? answer.archives ?? [] : [])].map((one) => h("li", {}, h("button", { type: "button", class: "row", "aria-pressed": String(one === table), "data-table": one, onclick: () => pick(one) }, icon("table"), h("span", {}, one)))),
      h("li", { class: "meta" }, [here, answer.more ? `${count(answer.more)} more folders are not listed` : ""].filter(Boolean).join(" · ")));
    chosen();
  }

  function pick(name) { // a table or zip, or by a second press the folder again
    table = name === table ? null : name;
    for (const row of folders.querySelectorAll("[data-table]")) row.setAttribute("aria-pressed", String(row.dataset.table === table));
    chosen();
  }

  function showFiles() {
    const { uploads, zip } = picked;
    const over = uploads.length > MAX_UPLOADS ? `, of which the first ${MAX_UPLOADS} are taken` : "";
    choosers.uploads.told.textContent = uploads.length ? `${count(uploads.length)} chosen${over}` : `up to ${MAX_UPLOADS}`;
    choosers.zip.told.textContent = zip.length ? `${zip[0].name}, ${bytes(zip[0].size)}` : "of pictures, up to 50 MB; a larger one can be chosen in a folder";
    picked.uploads = uploads.slice(0, MAX_UPLOADS);
  }

  return {
    nodes: [h("div", { class: "fld" }, h("span", { class: "lab" }, "Pictures from"), offered), ...kinds.map((one) => panels[one])],
    get files() { return picked[kind] ?? []; },
    get isTold() { return Boolean({ folder: at.root, drawn: drawn.value > 0, hub: hub.value.trim() }[kind] ?? picked[kind]?.length); },
    // {kind, …} as the server's routes take it
    data() {
      if (kind === "folder") return { kind: ZIP.test(table ?? "") ? "zip" : kind, root: at.root, path: [at.path, table].filter(Boolean).join("/") };
      if (kind === "drawn") return { kind, count: Number(drawn.value) };
      if (kind === "hub") return { kind, name: hub.value.trim() };
      return { kind, count: picked[kind].length };
    },
    // Offer what there is, and open what was chosen before, or `data`
    show({ roots: names, offline }, data = null) {
      const isThere = { folder: names.length, hub: !offline };
      const found = kinds.filter((one) => isThere[one] ?? true);
      choices = segmented("Pictures from", found.map((one) => [one, TITLES[one]]), kind, choose);
      offered.replaceChildren(choices.node, ...(names.length ? [] : [h("p", { class: "meta" }, "To choose a folder here, start the page with ", h("code", {}, "--root photos=DIR"), ".")]));
      roots.replaceChildren(...names.map((one) => h("option", { value: one }, one)));
      roots.hidden = names.length < 2;
      if (data?.root) {
        at = { root: data.root, path: data.path };
        table = null;
        if (/\.(parquet|zip)$/i.test(data.path)) {
          const cut = data.path.lastIndexOf("/");
          [at.path, table] = [data.path.slice(0, Math.max(0, cut)), data.path.slice(cut + 1)];
        }
        roots.value = data.root;
      }
      if (data?.kind === "drawn") drawn.value = data.count;
      if (data?.kind === "hub") hub.value = data.name;
      showFiles();
      choose(data?.root && found.includes("folder") ? "folder" : found.includes(data?.kind) ? data.kind : found.includes(kind) ? kind : found[0]);
    },
    // Upload the chosen files one by one: [{path, name}, …]; `tell` hears how far it is
    async send(upload, tell) {
      const sent = [];
      const { files } = this;
      for (const file of files) {
        tell(kind === "zip" ? `Sending ${bytes(file.size)}` : `Sending pictures: ${sent.length} of ${files.length}`);
        const { path } = await upload(file);
        sent.push({ path, name: file.name });
      }
      return sent;
    },
    clearFiles() {
      for (const which of Object.keys(picked)) {
        picked[which] = [];
        choosers[which].input.value = "";
      }
      showFiles();
    },
  };
}
