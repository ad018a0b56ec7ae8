// The part of the address that leads back to what the tab Compare shows; what is usual is left out.

import { session, whole, writeLink } from "./session.js";

// What a link names: {mode, split, opacity, shared, size, from} in place of `plain`, {layer, head} of each side (null where
// not named), a patch of the side `from`, a probe set, the source of the other model. `modes`: by name those there are.
export function readLink(link, plain, modes) {
  const number = (name, low, high) => whole(link.get(name), low, high);
  const head = (name) => (["max", "mean"].includes(link.get(name)) ? link.get(name) : number(name, 0, 255));
  const isItsPicture = [null, session.handle].includes(link.get("img")); // an upload of another visit is not here
  return {
    look: {
      mode: Object.hasOwn(modes, link.get("mode") ?? "") ? link.get("mode") : plain.mode,
      split: number("split", 0, 100) ?? plain.split,
      opacity: number("opacity", 0, 100) ?? plain.opacity,
      shared: link.get("scale") !== "own",
      size: number("size", 1, 16_384),
      from: link.get("side") === "b" ? "b" : "a",
    },
    a: { layer: number("layer", 0, 255), head: head("head") },
    b: { layer: number("layer_b", 0, 255), head: head("head_b") },
    patch: isItsPicture ? number("patch", 0, 65_535) : null,
    probe: link.get("probe"),
    other: link.get("other"),
  };
}

// The same; of {layer, head} null what is usual
export function keepLink(look, plain, { a, b, patch, probe, other }) {
  const own = (name) => (look[name] === plain[name] ? null : look[name]);
  writeLink({
    tab: "compare", img: session.handle, other, layer: a.layer, head: a.head, layer_b: b.layer, head_b: b.head, patch, side: patch === null ? null : own("from"),
    mode: own("mode"), split: look.mode === "slider" ? own("split") : null, opacity: own("opacity"), scale: look.shared ? null : "own", size: own("size"), probe,
  });
}
