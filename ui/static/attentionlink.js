// The part of the address that leads back to what the attention view shows; what is usual is left out.

import { opening } from "./opening.js";
import { session, whole, writeLink } from "./session.js";

const share = (text, low) => {
  const v = text === null || text === "" ? NaN : Number(text);
  return v >= low && v <= 1 ? Math.round(100 * v) / 100 : null;
};

// What a link names and this model has: {layer, head, query, size, start, opacity, mass, shared, clip}, each only if named
export function readLink(link, model, plain) {
  const text = (name) => link.get(name);
  const query = text("query");
  const isQuery = query === "mean" || model.prefix_tokens.includes(query);
  const head = ["max", "rollout"].includes(text("head")) ? text("head") : whole(text("head"), 0, model.heads - 1);
  const size = whole(text("size"), 1, 16_384);
  const read = {
    layer: whole(text("layer"), 0, model.blocks - 1),
    head,
    query: isQuery ? query : whole(text("patch"), 0, 65_535),
    size: model.attention_sizes.some(([px]) => px === size) ? size : null,
    start: whole(text("start"), 0, model.blocks - 1),
    opacity: share(text("opacity"), 0),
    mass: share(text("mass"), 0.05),
    shared: text("scale") === "own" ? false : null,
    clip: text("clip") === "0" ? false : null,
  };
  return { ...plain, ...Object.fromEntries(Object.entries(read).filter(([, value]) => value !== null)) };
}

// The picture, and the model where the address names one: a link's that could not be opened gives way to what is shown
function here() {
  const isNamed = new URL(location.href).searchParams.has("model") && !opening.now;
  return { tab: "attention", img: session.handle, ...(isNamed ? { model: session.facts.model.source } : {}) };
}

// of a model without attention
export const keepPicture = () => writeLink(here());

// `look` as above, `plain` what it is when nothing was chosen
export function keepLink(look, plain) {
  const other = (name, value = look[name]) => (look[name] === plain[name] ? null : value);
  const isPatch = typeof look.query === "number";
  writeLink({
    ...here(),
    layer: other("layer"), head: other("head"), size: other("size"), start: other("start"), opacity: other("opacity"), mass: other("mass"),
    patch: isPatch ? look.query : null, query: isPatch ? null : other("query"),
    scale: other("shared", "own"), clip: other("clip", "0"),
  });
}
