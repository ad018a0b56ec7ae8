// The part of the address that leads back to what the correspondence view shows; what is usual is left out.

import { session, whole, writeLink } from "./session.js";

const NAMES = { mode: "mode", rule: "rule", lines: "n", low: "min", front: "front", facet: "facet", layer: "layer", size: "size", check: "check", seed: "seed", leave: "leave" };

// What a link names, of `look` as below, each only if named. `choices`: by name what can be chosen.
export function readLink(link, model, choices) {
  const text = (name) => link.get(NAMES[name]);
  const number = (name, low, high) => whole(text(name), low, high);
  const chosen = Object.entries(choices).map(([name, offered]) => [name, Object.hasOwn(offered, text(name) ?? "") ? text(name) : null]);
  const layer = number("layer", -model.layers, model.layers - 1);
  const low = Number(text("low") ?? NaN);
  const patch = whole(link.get("patch"), 0, 65_535);
  const read = {
    ...Object.fromEntries(chosen),
    lines: number("lines", 1, 400),
    low: Math.abs(low) <= 1 ? low : null,
    facet: text("facet"),
    layer: layer !== null && layer >= 0 ? layer - model.layers : layer,
    size: number("size", 1, 16_384),
    seed: number("seed", 0, 9999),
    leave: number("leave", 0, 8),
    position: link.get("position") === "out" ? false : null,
    pin: patch === null ? null : { side: link.get("side") === "b" ? "b" : "a", patch },
  };
  return Object.fromEntries(Object.entries(read).filter(([, value]) => value !== null));
}

// `plain`: what `look` is when nothing was chosen; `other`: the source of the model beside, if there is one
export function keepLink(look, plain, other) {
  const values = Object.fromEntries(Object.entries(NAMES).map(([name, key]) => [key, look[name] === plain[name] ? null : look[name]]));
  const made = look.check !== "none";
  writeLink({
    tab: "correspondence", img: session.pair.a, img_b: made ? null : session.pair.b, ...values, seed: made ? values.seed : null,
    position: look.position ? null : "out", side: look.pin?.side, patch: look.pin?.patch, other,
  });
}
