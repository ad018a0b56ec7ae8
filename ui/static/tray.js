// The tray: 56-px squares of this visit's pictures and examples, last a dashed "+"; upload by click, drop and paste.
// The file goes to the server as it is; what is shown comes back from there, decoded.

import { h, icon, note } from "./dom.js";
import { session } from "./session.js";

const MAX_FILE_BYTES = 50e6;
let tickets = 0;
const waiting = new Map(); // ticket of an upload -> what to do with the answer
const inputs = new Set(); // the file choosers of all trays, for the "Add a picture" buttons elsewhere

export function chooseFile() {
  [...inputs].find((input) => input.isConnected && input.offsetParent !== null)?.click();
}

export function mount({ element, props, trigger, watch, upload }) {
  const pair = element.closest("#tray-correspondence") !== null; // where two pictures are chosen
  const choose = (handle) => (pair ? session.place(handle) : session.choose(handle));
  const strip = h("div", { class: "pics", role: "group", "aria-label": "Pictures" });
  const input = h("input", { type: "file", multiple: true, accept: "image/*", class: "file", tabindex: "-1", "aria-label": "Picture file" });
  const plus = h("button", { type: "button", class: "add", "aria-label": "Add a picture", title: "Add a picture: click, drop or paste", onclick: () => input.click() }, icon("plus"));
  const slot = h("div", { class: "errslot", "aria-live": "polite" });
  const busy = h("span", { class: "meta busy", role: "status" });
  element.append(h("div", { class: "tray" }, strip, busy, h("div", { class: "acts" })), slot);
  inputs.add(input);

  async function add(file) {
    if (file.size > MAX_FILE_BYTES) {
      session.fail({ title: "This picture could not be read.", text: "The file is larger than 50 MB. Choose a smaller picture." });
      return;
    }
    if (!session.ready) return;
    const slow = setTimeout(() => { busy.textContent = "Reading the picture…"; }, 150);
    try {
      const { path } = await upload(file);
      const ticket = ++tickets;
      const answer = await new Promise((done) => {
        waiting.set(ticket, done);
        trigger("added", { path, name: file.name || "pasted picture", ticket });
      });
      if (answer.error) session.fail(answer.error);
      else session.add(answer.picture, choose);
    } catch {
      session.fail({ title: "The picture did not arrive.", text: "The upload was interrupted or refused. Try again." });
    } finally {
      clearTimeout(slow);
      busy.textContent = "";
      input.value = "";
    }
  }

  watch("value", () => {
    const answer = JSON.parse(JSON.stringify(props.value ?? {}));
    waiting.get(answer.ticket)?.(answer);
    waiting.delete(answer.ticket);
  });
  async function addAll(files) {
    for (const file of [...files].slice(0, 12)) await add(file);
  }
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
    }
  });

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
    for (const [handle, square] of squares) {
      const sides = ["a", "b"].filter((side) => pair && session.pair[side] === handle && !(side === "b" && session.isMade)).map((side) => side.toUpperCase()).join(" ");
      square.setAttribute("aria-pressed", String(pair ? sides !== "" : handle === session.handle));
      square.lastElementChild.textContent = sides;
      square.lastElementChild.hidden = !sides;
    }
    if (!plus.isConnected) strip.append(plus, input);
    else if (strip.lastElementChild !== input) strip.append(plus, input);
    plus.disabled = !session.ready;
    squares.get(pair ? session.pair[session.side] : session.handle)?.scrollIntoView({ block: "nearest", inline: "nearest" });
    slot.replaceChildren(...(session.problem ? [note(session.problem)] : []));
  });
}
