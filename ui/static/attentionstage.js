// The figure of the attention view: photograph and map, colour bar, prefix tokens, and the line that says how it was read.

import { drawRamp } from "./colormap.js";
import { progressBar } from "./dialog.js";
import { h, loadPhoto, note, seconds, weight } from "./dom.js";
import { prefixCells } from "./prefix.js";
import { drawOverlay } from "./stage.js";
import { chooseFile } from "./tray.js";

const LONG_MS = 1500; // from here on a person may want to stop it

// `hear`: {pick(patch), hover(patch | null), query(query), cancel(), again(), resized()}
export function attentionStage(hear) {
  let maps = null;
  let photo = h("img", { alt: "" });
  const overlay = h("canvas", { class: "overlay", tabindex: "0", role: "img", "aria-label": "Attention map" });
  const inner = h("div", { class: "inner" }, photo, overlay);
  const tag = h("div", { class: "tag" });
  const state = h("div", { class: "state" });
  const bar = progressBar("Computing the maps");
  const [doing, took, kept] = [h("span"), h("span", { class: "meta" }), h("span", { class: "meta" })];
  const cancel = h("button", { type: "button", class: "btn small", onclick: () => hear.cancel() }, "Cancel");
  const loading = h("div", { class: "load", role: "status", hidden: true }, h("div", { class: "line spread" }, doing, took), bar.node, h("div", { class: "line spread" }, kept, cancel));
  const stage = h("div", { class: "stage pic" }, inner, tag, state, loading);
  const ramp = h("canvas", { "aria-hidden": "true" });
  const high = h("span");
  const scale = h("div", { class: "scale meta" }, h("span", {}, "0"), ramp, high, h("span", { class: "hide-s" }, "weight per patch"));
  const cells = prefixCells((query) => hear.query(query));
  const read = h("span");
  const best = h("span");
  const live = h("div", { class: "quiet-live", "aria-live": "polite" });
  drawRamp(ramp);

  const patchUnder = (event) => {
    const box = inner.getBoundingClientRect();
    return maps?.frame.at((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height) ?? null;
  };
  overlay.addEventListener("click", (event) => {
    const patch = patchUnder(event);
    if (patch !== null) hear.pick(patch);
  });
  overlay.addEventListener("pointermove", (event) => hear.hover(event.pointerType === "touch" ? null : patchUnder(event)));
  overlay.addEventListener("pointerleave", () => hear.hover(null));
  new ResizeObserver(() => { if (maps) hear.resized(); }).observe(stage);

  const placeOf = (patch) => `row ${Math.floor(patch / maps.columns)}, column ${patch % maps.columns}`;
  const described = ({ isPatch, query, frame, weights, top, opacity, on, hover }) => ({
    weights, rows: maps.rows, columns: maps.columns, frame, max: top, opacity, on, query: isPatch ? query : null, hover,
  });
  return {
    node: h("figure", {}, stage, scale, cells.node, h("div", { class: "under meta" }, read, best), live),
    overlay, cells,
    get photo() { return photo; },
    // a photograph, decoded beside the old one, which stays until the maps are there too
    async load(handle) {
      if (photo.dataset.handle === handle) return photo;
      return loadPhoto(handle);
    },
    receive(next, nextPhoto, noted) {
      maps = next;
      if (nextPhoto !== photo) photo.replaceWith(nextPhoto);
      photo = nextPhoto;
      const { frame, format, time_s, device } = maps.facts;
      const ratio = frame.width / frame.height;
      Object.assign(inner.style, { width: `${100 * Math.min(1, ratio)}%`, height: `${100 * Math.min(1, 1 / ratio)}%` });
      const parts = [`${frame.width}×${frame.height} ${format}`, noted, "shown whole", `${maps.rows}×${maps.columns} patches of ${frame.patch_px} px`, `${seconds(time_s)} on ${device}`];
      read.replaceChildren(...parts.filter(Boolean).flatMap((part, i) => [i ? " · " : "", h("span", {}, part)]));
    },
    clear(words) {
      maps = null;
      read.textContent = words;
      best.textContent = "";
    },
    // `scene` as attention.js makes it
    draw(scene) {
      const ratio = Math.min(2, devicePixelRatio);
      const [width, height] = [Math.round(inner.clientWidth * ratio), Math.round(inner.clientHeight * ratio)];
      if (!width || !height) return;
      if (overlay.width !== width || overlay.height !== height) Object.assign(overlay, { width, height });
      drawOverlay(overlay.getContext("2d"), width, height, described(scene));
      cells.draw(scene.prefix, scene.row, scene.top, scene.query);
      const { name, weights, hover, peak, top, clip } = scene;
      tag.textContent = name;
      high.textContent = `${weight(top)}${clip ? " (99.5 %)" : ""}`;
      const strongest = weights[peak] > 0 ? `strongest at ${placeOf(peak)}` : "the rollout begins in a later block";
      best.textContent = hover === null ? `${strongest}: ${weight(weights[peak])}` : `${placeOf(hover)}: ${weight(weights[hover])}`;
      if (scene.isPassing) return;
      const words = `${name}; ${strongest}, weight ${weight(weights[peak])}`;
      overlay.setAttribute("aria-label", `Attention map. ${words}. Arrow keys move the query patch.`);
      live.textContent = words;
    },
    // the map over the whole photograph, as a picture file without any metadata
    picture(scene) {
      const canvas = h("canvas", { width: photo.naturalWidth, height: photo.naturalHeight });
      const over = new OffscreenCanvas(canvas.width, canvas.height);
      drawOverlay(over.getContext("2d"), canvas.width, canvas.height, { ...described(scene), hover: null });
      const context = canvas.getContext("2d");
      context.drawImage(photo, 0, 0);
      context.drawImage(over, 0, 0);
      return new Promise((done) => canvas.toBlob(done, "image/png"));
    },
    // what stands there in place of maps; null: nothing
    say(kind, problem) {
      state.hidden = kind === null;
      if (kind === null) return;
      state.replaceChildren(...(problem ? [note(problem)] : kind === "starting"
        ? [h("p", {}, "Opening the model"), h("p", { class: "meta" }, "It takes a few seconds; the maps appear by themselves.")]
        : kind === "left" ? [h("p", {}, "The maps of this picture were not computed."), h("button", { type: "button", class: "btn pri", onclick: () => hear.again() }, "Compute the maps")]
        : [h("p", {}, "Choose a picture to see where each head of this model looks."),
          h("button", { type: "button", class: "btn pri", onclick: chooseFile }, "Add a picture"),
          h("p", { class: "meta" }, "or start with a sample above · JPEG, PNG, WebP, AVIF, up to 50 MB")]));
    },
    // {words, ms, about: seconds or null} of what is under way; null: nothing
    wait(what) {
      loading.hidden = what === null;
      if (!what) return;
      const { words, ms, about } = what;
      doing.textContent = words;
      took.textContent = `${(ms / 1000).toFixed(1)} s${about && about > 1 ? ` of about ${seconds(about)}` : ""}`;
      bar.show(ms / 1000, about && ms / 1000 < about ? about : null);
      kept.textContent = maps ? "The previous result stays until the new one is there." : "The maps appear here.";
      cancel.style.visibility = ms < LONG_MS ? "hidden" : "visible";
    },
  };
}
