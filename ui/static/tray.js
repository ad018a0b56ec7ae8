// The tray: 56-px squares of this visit's pictures and examples, last a dashed "+"; upload by click, drop and paste.
// The file goes to the server as it is; what is shown comes back from there, decoded.

import { h, icon, note } from "./dom.js";
import { doors, session } from "./session.js";

const MAX_FILE_BYTES = 50e6;
const RING_PX = 4; // around the chosen square
let tickets = 0;
const waiting = new Map(); // ticket of an upload -> what to do with the answer
const inputs = new Set(); // the file choosers of all trays, for the "Add a picture" buttons elsewhere

const onScreen = () => [...inputs].find((input) => input.isConnected && input.offsetParent !== null);

export function chooseFile() {
  onScreen()?.click();
}

// A file of the page's own into the tray on screen, as if a person had chosen it
export function giveFile(file) {
  const chosen = new DataTransfer();
  chosen.items.add(file);
  onScreen().files = chosen.files;
  onScreen().dispatchEvent(new Event("change"));
}

export function mount({ element, props, trigger, watch, upload }) {
  const pair = element.closest("#tray-correspondence") !== null; // where two pictures are chosen
  const asks = element.closest("#tray-search") !== null; // where several can be searched with
  const choose = (handle, isMore = false) => (pair ? session.place(handle) : asks && doors.query ? doors.query(handle, isMore) : session.choose(handle));
  const strip = h("div", { class: "pics", role: "group", "aria-label": "Pictures" });
  const input = h("input", { type: "file", multiple: true, accept: "image/*", class: "file", tabindex: "-1", "aria-label": "Picture file" });
  const plus = h("button", { type: "button", class: "add", "aria-label": "Add a picture", title: "Add a picture: click, drop or paste", onclick: () => input.click() }, icon("plus"));
  const slot = h("div", { class: "errslot", "aria-live": "polite" });
  const busy = h("span", { class: "meta busy", role: "status" });
  const address = h("input", { type: "text", inputmode: "url", placeholder: "https://…", "aria-label": "Address of a picture", autocomplete: "off", spellcheck: "false" });
  const fetchIt = h("form", { class: "line address", hidden: true, onsubmit: (event) => { event.preventDefault(); addAddress(address.value.trim()); } }, address, h("button", { type: "submit", class: "btn" }, "Fetch"));
  element.append(h("div", { class: "tray" }, strip, busy, h("div", { class: "acts" }, ...(asks ? [fetchIt] : []))), slot);
  inputs.add(input);

  // `bring` gives what the server is told of a picture: {path, name} of an upload, or {url}; true once it is in the tray
  async function add(bring, { words = "Reading the picture…", isMore = false } = {}) {
    if (!session.ready) return false;
    const slow = setTimeout(() => { busy.textContent = words; }, 150);
    try {
      const told = await bring();
      const ticket = ++tickets;
      const answer = await new Promise((done) => {
        waiting.set(ticket, done);
        trigger("added", { ...told, ticket });
      });
      if (answer.error) session.fail(answer.error);
      else session.add(answer.picture, (handle) => choose(handle, isMore));
      return !answer.error;
    } catch {
      session.fail({ title: "The picture did not arrive.", text: "The upload was interrupted or refused. Try again." });
      return false;
    } finally {
      clearTimeout(slow);
      busy.textContent = "";
      input.value = "";
    }
  }
  async function addFile(file, how) {
    if (file.size > MAX_FILE_BYTES) {
      session.fail({ title: "This picture could not be read.", text: "The file is larger than 50 MB. Choose a smaller picture." });
      return false;
    }
    return add(async () => ({ path: (await upload(file)).path, name: file.name || "pasted picture" }), how);
  }
  async function addAll(files) {
    const all = [...files].slice(0, 12);
    let isMore = false; // where several can be searched with, those of one choice are
    for (const [i, file] of all.entries()) {
      const isIn = await addFile(file, { isMore, ...(all.length > 1 ? { words: `Reading picture ${i + 1} of ${all.length}…` } : {}) });
      isMore ||= asks && isIn;
    }
  }
  async function addAddress(url) {
    if (url && await add(async () => ({ url }), { words: "Fetching the picture…" })) address.value = "";
  }

  watch("value", () => {
    const answer = JSON.parse(JSON.stringify(props.value ?? {}));
    waiting.get(answer.ticket)?.(answer);
    waiting.delete(answer.ticket);
  });
  input.addEventListener("change", () => addAll(input.files));

  // drop and paste work on the whole page; of the trays, the one on screen answers
  const shown = () => element.offsetParent !== null;
  document.addEventListener("dragover", (event) => {
    if (shown() && [...event.dataTransfer.types].includes("Files")) {
      event.preventDefault();
      element.classList.add("over");
    }
  });
  for (const name of ["dragleave", "drop", "dragend"]) document.addEventListener(name, () => element.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    if (shown() && event.dataTransfer.files.length) {
      event.preventDefault();
      addAll(event.dataTransfer.files);
    }
  });
  document.addEventListener("paste", (event) => {
    if (shown() && event.clipboardData?.files.length) {
      event.preventDefault();
      addAll(event.clipboardData.files);
      return;
    }
    const words = event.clipboardData?.getData("text").trim() ?? "";
    if (asks && shown() && !fetchIt.hidden && /^https?:\/\/\S+$/i.test(words) && !event.target.closest("input, textarea, [contenteditable]")) addAddress(words);
  });

  function bringIn(square) { // sideways: the page stays where it is
    if (!square) return;
    const [{ left, right }, box] = [square, strip].map((node) => node.getBoundingClientRect());
    strip.scrollLeft += Math.min(0, left - RING_PX - box.left) + Math.max(0, right + RING_PX - box.right);
  }
  const squares = new Map();
  session.hear(() => {
    for (const picture of session.pictures) {
      if (squares.has(picture.handle)) continue;
      const square = h("button", { type: "button", "aria-label": picture.name, title: picture.name, onclick: () => choose(picture.handle) },
        h("img", { src: `api/picture/${picture.handle}?size=tray`, alt: "", loading: "lazy" }), h("i", { class: "badge", hidden: true }));
      squares.set(picture.handle, square);
      strip.append(square);
    }
    for (const [handle, square] of squares) {
      if (session.pictures.some((picture) => picture.handle === handle)) continue;
      square.remove();
      squares.delete(handle);
    }
    const { queries, less } = (asks && doors.queried?.()) || { queries: [session.handle], less: [] };
    for (const [handle, square] of squares) {
      const sides = ["a", "b"].filter((side) => pair && session.pair[side] === handle && !(side === "b" && session.isMade)).map((side) => side.toUpperCase()).join(" ");
      const badge = less.includes(handle) ? "−" : sides;
      square.setAttribute("aria-pressed", String(pair ? sides !== "" : queries.includes(handle)));
      square.lastElementChild.textContent = badge;
      square.lastElementChild.hidden = !badge;
    }
    if (!plus.isConnected) strip.append(plus, input);
    else if (strip.lastElementChild !== input) strip.append(plus, input);
    plus.disabled = !session.ready;
    fetchIt.hidden = !session.ready || Boolean(session.facts.public || session.facts.offline);
    bringIn(squares.get(pair ? session.pair[session.side] : session.handle));
    slot.replaceChildren(...(session.problem ? [note(session.problem)] : []));
  });
}
