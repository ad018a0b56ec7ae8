// What the attention view shows, for the panels beside it. They draw from here and never ask for maps of their own.

const listeners = new Set();
let choosing = null;

export const looking = {
  // null, or {key, model, handle, query: "cls" | "mean" | "register:I" | patch, size, layer (0-based),
  // head: "mean" | "max" | "rollout" | index, mass 0..1, maps (wire.js, with norms(layer)), photo (<img>), frame (framed)}
  shown: null,
  hear(listener) { listeners.add(listener); if (this.shown) listener(); },
  tell() { for (const listener of listeners) listener(); },
  // show another block, attention head, query or picture: {layer?, head?, query?, handle?}
  choose(change) { choosing?.(change); },
  onchoose(how) { choosing = how; },
};
