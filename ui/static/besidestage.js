// A picture with colours over it, beside the attention view. A click on it asks from that patch, arrow keys move on.

import { h } from "./dom.js";
import { looking } from "./looking.js";
import { drawSquare } from "./stage.js";

const [NARROW, WIDE] = [0.75, 2.5]; // of very long pictures the stage keeps a shape one can look at
const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

// Calls `draw` in the next frame once something was told to be new; off screen it waits until the node comes there
export function whenSeen(node, draw) {
  let [isSeen, isDue, isQueued] = [false, false, false];
  const run = () => {
    isQueued = false;
    if (!isSeen || !isDue) return;
    isDue = false;
    draw();
  };
  const next = () => {
    if (!isSeen || !isDue || isQueued) return;
    isQueued = true;
    requestAnimationFrame(run);
  };
  new IntersectionObserver((entries) => { isSeen = entries.at(-1).isIntersecting; next(); }, { rootMargin: "64px" }).observe(node);
  return { isNew() { isDue = true; next(); }, get isSeen() { return isSeen; } };
}

// `name` for those who do not see it; `onhover(patch of the frame that is shown, or null)`; `isQuery`: it has a query
export function sideStage(name, { onhover = () => {}, isQuery = true } = {}) {
  let photo = h("img", { alt: "", style: { visibility: "hidden" } }); // an image without a source has a frame
  let shown = null; // {handle, frame (framed), ratio}
  let hover = null;
  const overlay = h("canvas", { class: "sideover", role: "img", "aria-label": name, tabindex: isQuery ? "0" : null });
  const inner = h("div", { class: "inner" }, photo, overlay);
  const tag = h("div", { class: "sidetag", hidden: true });
  const node = h("div", { class: `stage pic${isQuery ? "" : " mute"}` }, inner, tag);

  const at = (event) => {
    const box = inner.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  const isOnView = () => isQuery && shown && looking.shown?.handle === shown.handle;
  const ask = (patch) => { if (patch !== null) looking.choose({ query: patch }); };
  overlay.addEventListener("click", (event) => { if (isOnView()) ask(looking.shown.frame.at(...at(event))); });
  overlay.addEventListener("pointermove", (event) => {
    const patch = event.pointerType === "touch" || !shown ? null : shown.frame.at(...at(event));
    if (patch === hover) return;
    hover = patch;
    onhover(patch);
  });
  overlay.addEventListener("pointerleave", () => { if (hover !== null) { hover = null; onhover(null); } });
  overlay.addEventListener("keydown", (event) => {
    if (!(event.key in STEPS) || event.ctrlKey || event.metaKey || event.altKey || !isOnView()) return;
    event.preventDefault();
    const { frame: { rows, columns }, query } = looking.shown;
    const from = typeof query === "number" ? query : Math.floor(rows / 2) * columns + Math.floor(columns / 2);
    const [down, right] = typeof query === "number" ? STEPS[event.key] : [0, 0];
    const within = (value, most) => Math.min(most - 1, Math.max(0, value));
    ask(within(Math.floor(from / columns) + down, rows) * columns + within((from % columns) + right, columns));
  });

  function shape(width, height) { // before anything is drawn, so that nothing moves later
    const ratio = width / height;
    const box = Math.min(WIDE, Math.max(NARROW, ratio));
    node.style.aspectRatio = String(box);
    inner.style.width = `${100 * Math.min(1, ratio / box)}%`;
    inner.style.height = `${100 * Math.min(1, box / ratio)}%`;
    inner.style.visibility = shown && Math.abs(ratio - shown.ratio) > 1e-6 ? "hidden" : ""; // the picture before would be distorted
  }

  function paint(context, width, height, colours) {
    const { frame } = shown;
    const place = ([x0, y0, x1, y1]) => [x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height];
    const unit = Math.max(1, Math.min(width, height) / 640);
    colours(context, { area: place(frame.cover), box: (patch) => place(frame.box(patch)), unit });
    if (isOnView() && typeof looking.shown.query === "number") {
      drawSquare(context, place(looking.shown.frame.box(looking.shown.query)), unit, "#ffffff");
    }
  }

  return {
    node, overlay, tag, shape,
    get shown() { return shown; },
    // a picture (<img>, already decoded) of `width` x `height`, with where its patches lie
    show(handle, next, frame, { width, height }) {
      if (shown?.handle !== handle) {
        const clone = next.cloneNode();
        photo.replaceWith(clone);
        photo = clone;
      }
      shown = { handle, frame, ratio: width / height };
      shape(width, height);
    },
    // `colours(context, {area [x, y, w, h], box(patch) -> such, unit})` draws onto the picture
    draw(colours) {
      const ratio = Math.min(2, devicePixelRatio);
      const [width, height] = [Math.round(inner.clientWidth * ratio), Math.round(inner.clientHeight * ratio)];
      if (!shown || !width || !height) return;
      if (overlay.width !== width || overlay.height !== height) Object.assign(overlay, { width, height });
      const context = overlay.getContext("2d");
      context.clearRect(0, 0, width, height);
      paint(context, width, height, colours);
    },
    // the same at the picture's own size, for a file
    picture(colours) {
      const [width, height] = [photo.naturalWidth, photo.naturalHeight];
      const canvas = h("canvas", { width, height });
      const context = canvas.getContext("2d");
      context.drawImage(photo, 0, 0);
      paint(context, width, height, colours);
      return canvas;
    },
  };
}

// One pixel a patch: `rgba(patch)` gives [r, g, b, a], or null where nothing is drawn
export function patchImage(rows, columns, rgba) {
  const image = new ImageData(columns, rows);
  for (let patch = 0; patch < rows * columns; patch++) {
    const colour = rgba(patch);
    if (colour) image.data.set(colour, 4 * patch);
  }
  const canvas = new OffscreenCanvas(columns, rows);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// Patches as squares: their colours are not mixed with those beside them
export function drawPatches(context, image, area) {
  context.imageSmoothingEnabled = false;
  context.drawImage(image, ...area);
}
