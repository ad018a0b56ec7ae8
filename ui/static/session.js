// What all views of one page share: the server's facts, the tray's pictures and which one is chosen.
// A view subscribes, and asks the server for what it lacks while it is on screen.

const MAX_UPLOADS = 12; // as many as the server keeps for a visit
const listeners = new Set();

export const session = {
  facts: { state: "starting", pictures: [] },
  pictures: [], // {handle, name, format, note, width, height}; width is missing until the server has read an example
  handle: null, // the chosen picture
  pair: { a: null, b: null }, // the two that are compared; a follows the chosen one
  isMade: false, // both pictures of the pair are made from a, so b is not in use
  side: "b", // which of them the tray of that tab fills
  link: new URL(location.href).searchParams, // what the address named when the page was loaded
  problem: null, // {title, text}: what the last upload or question met
  hear(listener) { listeners.add(listener); listener(); },
  tell() { for (const listener of listeners) listener(); },
  get picture() { return this.pictures.find((picture) => picture.handle === this.handle) ?? null; },
  get ready() { return this.facts.state === "ready"; },
  choose(handle) {
    this.handle = this.pair.a = handle;
    this.problem = null;
    this.tell();
  },
  place(handle) { // a picture into the side of the pair that is being chosen
    if (this.isMade || this.side === "a") return this.choose(handle);
    this.pair.b = handle;
    this.problem = null;
    this.tell();
  },
  add(picture, choose = (handle) => this.choose(handle)) {
    const uploads = this.pictures.filter((one) => one.uploaded).slice(1 - MAX_UPLOADS);
    this.pictures = [...this.pictures.filter((one) => !one.uploaded), ...uploads, { ...picture, uploaded: true }];
    choose(picture.handle);
  },
  fail(problem) {
    this.problem = problem;
    this.tell();
  },
  // another model for this visitor: the address leads back to it
  use(model) {
    this.facts = { ...this.facts, state: "ready", model };
    this.problem = null;
    writeLink({ model: model.source });
    this.tell();
  },
};

// Keep what is on screen in the address: values by name, null for what stands there no more
export function writeLink(values) {
  const url = new URL(location.href);
  for (const [name, value] of Object.entries(values)) {
    if (value === null || value === undefined) url.searchParams.delete(name);
    else url.searchParams.set(name, value);
  }
  if (url.href !== location.href) history.replaceState(history.state, "", url);
}

// A whole number of an address within bounds, else null
export function whole(text, low, high) {
  const n = text === null || text === "" ? NaN : Number(text);
  return Number.isInteger(n) && n >= low && n <= high ? n : null;
}

// What the header opens and other views have buttons for: `picker` and `remember`
export const doors = {};

const wait = (ms) => new Promise((done) => setTimeout(done, ms));

async function readFacts() {
  session.facts = await (await fetch("api/facts")).json();
  if (!session.pictures.length) {
    session.pictures = session.facts.pictures;
    const [img, other] = ["img", "img_b"].map((name) => session.link.get(name));
    const isHere = (handle) => session.pictures.some((picture) => picture.handle === handle);
    session.handle = isHere(img) ? img : session.pictures[0]?.handle ?? null;
    const [a, b] = session.facts.pair;
    session.pair = { a: isHere(img) ? img : a ?? null, b: isHere(other) ? other : b ?? null };
    if ([img, other].some((handle) => handle && !isHere(handle))) {
      session.problem = { title: "A picture of this link is not here.", text: "Uploads are kept for one visit; add it again." };
    }
  }
  const wanted = new URL(location.href).searchParams.get("model");
  if (session.ready && wanted && wanted !== session.facts.model.source) await restore(wanted);
  session.tell();
}

// The model that the address names: at once if it is open here, else the first one serves until it is there
async function restore(source) {
  session.facts.state = "starting";
  const { openModel } = await import("./opening.js");
  await new Promise((first) => { openModel(source, { first }).then((isOpen) => { if (!isOpen) session.tell(); }); });
  session.facts.state = "ready";
}

async function start() {
  await readFacts();
  while (session.facts.state === "starting") {
    await wait(300);
    const { state } = await (await fetch("healthz")).json();
    if (state !== "starting") await readFacts();
  }
}

start().catch(() => {
  session.facts = { ...session.facts, state: "failed", title: "The server does not answer.", text: "Start it again, then load this page again." };
  session.tell();
});

// Runs `asked` when the element is on screen and again whenever it comes back on screen or the session changes
export function whileVisible(element, asked) {
  let visible = false;
  new IntersectionObserver((entries) => {
    visible = entries.at(-1).isIntersecting || element.offsetParent !== null;
    if (visible) asked();
  }).observe(element);
  session.hear(() => { if (element.offsetParent !== null) asked(); });
}
