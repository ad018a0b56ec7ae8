// A map of very many points on a canvas: drawn pixel by pixel, so that no GPU is needed. Made once and then updated.
// Two canvases: the points, redrawn when the view or a colour changes, and what lies over them.

import { cividis } from "./colormap.js";
import { count, h, icon, onTheme } from "./dom.js";
import { drawPicture, imageCache, withRoom } from "./mappictures.js";
import * as raster from "./raster.js";

const PAD_PX = 24; // between the points and the border when all are shown
const LEAST_ZOOM = 0.5;
const MOST_ZOOM = 256; // about 2 px between neighbouring coordinates
const STEP = 1.5; // of a button or a key
const PAN_PX = 64;
const DOT_PX = 5; // largest, and the one with a rim
const MARGIN = 24; // px drawn beyond the border, so that dots need no clipping: twice the largest dot's radius
const REACH_PX = 10;
const TOUCH_REACH_PX = 24;
const CLICK_PX = 4; // a press that moves less is a click
const MOVING_MS = 16; // what drawing points may cost while the map moves; then only a part of them is drawn
const FEWEST = 32_768;
const STILL_MS = 150;
const CARD_GAP_PX = 16;
const PICTURE_PX = 44; // with its two rims; a multiple of 4, so that it is whole pixels on most screens
const RIMS_PX = [1.5, 2]; // of the page's colour, and of the point's inside it
const PICTURED = 400; // points on screen, with more of them there are no pictures
const MOST_PICTURES = 120;
const TOKENS = ["bg", "text", "accent", ...Array.from({ length: 8 }, (_, i) => `c${i}`)];
const DARK_RIM = [20, 24, 31];
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const NO_MARKS = { pinned: null, links: [], cross: null, labels: [] };
const clamp = (value, low, high) => Math.max(low, Math.min(value, high));

// The corner of a card beside a point, all px: inside the box, over the point only where there is no room beside it
export function cardPlace(x, y, width, height, boxWidth, boxHeight) {
  const inside = (at, length, room) => clamp(at, 0, Math.max(0, room - length));
  const before = (at, length) => at - CARD_GAP_PX - length;
  if (x + CARD_GAP_PX + width <= boxWidth) return { left: x + CARD_GAP_PX, top: inside(y - height / 2, height, boxHeight) };
  if (before(x, width) >= 0) return { left: before(x, width), top: inside(y - height / 2, height, boxHeight) };
  const below = y + CARD_GAP_PX + height <= boxHeight ? y + CARD_GAP_PX : before(y, height);
  return { left: inside(x - width / 2, width, boxWidth), top: inside(below, height, boxHeight) };
}

function glyph(path) { // 16 px, as the icons of the page
  const svg = icon("plus");
  svg.firstChild.setAttribute("d", path);
  return svg;
}

// `hear`, each may be missing: {hover(index|null, {x, y} px of the window), pick(index|null), select(indices), view(),
// mode(name), clear(), picture(index)}; the last one answers with the URL of a thumbnail, or null. An index is a place in
// the arrays that `show` was given. With `isPassed` the page scrolls on over the map: the wheel zooms with Ctrl, and one
// finger only points.
export function mapCanvas({ isPassed = false, ...hear }) {
  const ground = h("canvas", { "aria-hidden": "true" });
  const top = h("canvas", { class: "overlay", tabindex: "0", role: "img", "aria-label": "Map. Arrow keys move it, plus and minus zoom, Enter pins the nearest point, L starts a lasso." });
  const told = h("div", { class: "told meta", hidden: true });
  const button = (label, path, onclick) => h("button", { type: "button", class: "btn icon", "aria-label": label, title: label, onclick }, glyph(path));
  const buttons = h("div", { class: "zoom", role: "group", "aria-label": "Zoom" },
    button("Zoom in", "M8 3v10M3 8h10", () => zoomAt(STEP)),
    button("Zoom out", "M3 8h10", () => zoomAt(1 / STEP)),
    button("Show all", "M2.5 6v-3.5H6M10 2.5h3.5V6M13.5 10v3.5H10M6 13.5H2.5V10", fit));
  const node = h("div", { class: "mapbox", "data-mode": "pan" }, ground, top, buttons, told);

  let points = null; // {x, y, ids, box, head, next, crowd}, by index
  let order = null; // the index of each point in the order of drawing; the next three are in that order
  let drawn = null; // {x, y}
  let level = null; // 0..255
  let on = null; // 0 is greyed; null when nothing is
  let colouring = { kind: "category" };
  let tokens = null; // colours of the theme, [r, g, b]; null when they have to be read
  let ink = null; // {colours, rims, dimmed, levels}
  let density = "auto";
  const view = { x: raster.SIDE / 2, y: raster.SIDE / 2, zoom: 1 }; // the coordinates in the middle; zoom 1 shows all
  const size = { width: 0, height: 0, ratio: 1 };
  let mode = "pan";
  let marks = { ...NO_MARKS };
  let hovered = null;
  let image = null;
  let pixel = null; // of each point
  let seen = null; // the points of this view, by their places in `order`; null before they are needed
  let hasPictures = true;
  let shown = []; // {index, rank, url} of each picture, `rank` its place in `order`
  let images = imageCache(changed);
  const drawnNow = { size: 1, dense: false, count: 0, draws: 0, pictures: 0 };

  // ---- where things are
  function scale() { // px of the page per coordinate
    if (!points) return 1;
    const [x0, y0, x1, y1] = points.box;
    const room = (length) => Math.max(1, length - 2 * PAD_PX);
    return view.zoom * Math.min(room(size.width) / (x1 - x0), room(size.height) / (y1 - y0));
  }
  const place = (x, y) => [(x - view.x) * scale() + size.width / 2, (y - view.y) * scale() + size.height / 2];
  const placeOf = (index) => place(points.x[index], points.y[index]);
  const coordinates = (px, py) => [view.x + (px - size.width / 2) / scale(), view.y + (py - size.height / 2) / scale()];
  const near = (px, py, reach) => (points ? raster.nearest(points, points, ...coordinates(px, py), reach / scale()) : null);
  const under = (px, py, reach) => pictureAt(px, py)?.index ?? near(px, py, reach);
  function pixels(ratio = 1, margin = 0) { // the view of raster.js
    const s = scale() * ratio;
    return { scale: s, left: view.x * s - (size.width / 2) * ratio - margin, top: view.y * s - (size.height / 2) * ratio - margin };
  }

  // ---- drawing, at most once a frame
  let frame = 0;
  let isStale = true; // the points have to be drawn again
  let isLaidOut = false; // the pictures of this view are chosen
  let moving = null; // timer, set while the view moves
  let portion = 1; // of the points, while it moves
  function later(withPoints = false) {
    isStale ||= withPoints;
    frame ||= requestAnimationFrame(draw);
  }
  function draw() {
    cancelAnimationFrame(frame);
    frame = 0;
    if (!size.width || !points) return; // on a hidden tab; drawn when it is back
    if (isStale) drawPoints();
    if (!isLaidOut && !moving) layOut();
    drawMarks();
  }

  function readInk() {
    if (!tokens) {
      const style = getComputedStyle(node);
      const pen = new OffscreenCanvas(1, 1).getContext("2d");
      tokens = Object.fromEntries(TOKENS.map((name) => {
        pen.fillStyle = style.getPropertyValue(`--ui-${name}`);
        return [name, [1, 3, 5].map((at) => parseInt(pen.fillStyle.slice(at, at + 2), 16))]; // it says #rrggbb
      }));
      tokens.font = `600 12px ${style.getPropertyValue("--ui-sans") || "sans-serif"}`;
    }
    const { kind, palette, none, own = {} } = colouring;
    const isDark = tokens.bg[0] < 128;
    let levels = null;
    if (kind === "scale") { // without the end that the page's colour would hide
      if (palette === "age") levels = raster.ramp(raster.mix(tokens.bg, tokens.c0, 0.7), tokens.text);
      else levels = isDark ? raster.part(cividis, 0.25, 1) : raster.part(cividis, 0, 0.85);
    }
    const colourOf = (value) => {
      if (levels) return tokens[own[value]] ?? (none && value === 0 ? tokens.c0 : [...levels.subarray(3 * value, 3 * value + 3)]);
      const number = palette ? palette[value] : value;
      return tokens[`c${number}`] ?? tokens.c0; // what has no colour of its own is grey
    };
    const all = Array.from({ length: 256 }, (_, value) => colourOf(value));
    ink = {
      levels,
      all,
      colours: Uint32Array.from(all, (colour) => raster.pack(...colour)),
      rims: Uint32Array.from(all, (colour) => raster.pack(...raster.mix(colour, DARK_RIM, 0.5))),
      dimmed: raster.pack(...raster.mix(tokens.bg, tokens.c0, 0.55)),
    };
  }

  function drawPoints() {
    const began = performance.now();
    isStale = false;
    if (!ink) readInk();
    const { ratio } = size;
    const [width, height] = [ground.width + 2 * MARGIN, ground.height + 2 * MARGIN];
    if (image?.width !== width || image.height !== height) image = new ImageData(width, height);
    const buffer = new Uint32Array(image.data.buffer);
    buffer.fill(0);
    const total = order.length;
    const n = moving ? Math.ceil(total * portion) : total;
    const at = pixels(ratio, MARGIN);
    const [x0, y0, x1, y1] = points.box;
    const side = raster.dotSize(total, (x1 - x0) * (y1 - y0), at.scale, DOT_PX * ratio);
    const shape = raster.dot(side, width, side >= DOT_PX * ratio ? Math.round(ratio) : 0);
    raster.placed(drawn, n, at, width, height, MARGIN / 2, pixel);
    // dots that meet on a pixel where the points are three times as dense as around an average point
    const peak = 1 + (3 * (points.crowd - 1) * (n / total) * shape.inner.length) / (raster.CELL * at.scale) ** 2;
    const least = density === "on" ? 0.25 : 1 - 0.75 * clamp(Math.log2(peak / 8) / 4, 0, 1); // "auto" fades in
    const dense = density === "on" || (density === "auto" && colouring.kind === "category" && least < 1);
    if (dense) {
      raster.tally(buffer, pixel, n, level, on, shape);
      raster.shade(buffer, ink.colours, least, peak);
    } else raster.paint(buffer, pixel, n, level, on, shape, ink.colours, ink.rims);
    if (on) raster.paintBelow(buffer, pixel, n, on, shape, ink.dimmed);
    ground.getContext("2d").putImageData(image, -MARGIN, -MARGIN);
    if (n === total) portion = clamp(MOVING_MS / (performance.now() - began), Math.min(1, FEWEST / total), 1);
    Object.assign(drawnNow, { size: side / ratio, dense, count: n, draws: drawnNow.draws + 1 });
    told.hidden = n === total;
    told.textContent = `${count(n)} of ${count(total)} points while it moves`;
    hear.view?.();
  }

  // ---- pictures
  function layOut() {
    isLaidOut = true;
    shown = [];
    if (hear.picture && hasPictures) {
      seen ??= raster.inView(drawn, pixels(), size.width, size.height);
      const all = seen.length > PICTURED ? [] : Array.from(seen).filter((rank) => !on || on[rank])
        .map((rank) => ({ rank, index: order[rank], url: hear.picture(order[rank]) }))
        .filter(({ url }) => url && !images.hasFailed(url));
      const spots = all.map(({ index }) => placeOf(index));
      shown = withRoom(spots.map(([x]) => x), spots.map(([, y]) => y), PICTURE_PX, MOST_PICTURES).map((i) => all[i]);
    }
    images.want(shown.map(({ url }) => url));
  }
  function layOutAgain() {
    isLaidOut = false;
    later();
  }
  function changed(hasFailed) { // an image has come; one that did not leaves its room to others
    if (hasFailed) layOutAgain();
    else later();
  }
  function pictureAt(px, py) {
    const [[x, y], half] = [coordinates(px, py), PICTURE_PX / 2 / scale()];
    const isAt = (index) => Math.abs(points.x[index] - x) <= half && Math.abs(points.y[index] - y) <= half;
    return shown.find(({ index, url }) => isAt(index) && images.get(url));
  }

  function drawPictures(context) {
    drawnNow.pictures = 0;
    for (const { index, rank, url } of [...shown].reverse()) { // the first on top, should the zoom bring them together
      const picture = images.get(url);
      if (!picture) continue;
      const rims = [[css(tokens.bg), RIMS_PX[0]], [css(ink.all[level[rank]]), RIMS_PX[1]]];
      drawPicture(context, picture, ...placeOf(index), PICTURE_PX, rims, size.ratio);
      drawnNow.pictures++;
    }
  }

  const css = ([red, green, blue], alpha = 1) => `rgb(${red} ${green} ${blue} / ${alpha})`;

  function drawMarks() {
    const context = top.getContext("2d");
    const { width, height, ratio } = size;
    const { bg, text, accent, font } = tokens;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const stroke = (...styles) => {
      for (const [strokeStyle, lineWidth] of styles) {
        Object.assign(context, { strokeStyle, lineWidth });
        context.stroke();
      }
    };
    const circle = (x, y, radius) => { context.beginPath(); context.arc(x, y, radius, 0, 2 * Math.PI); };
    drawPictures(context);
    drawLabels(context);
    if (marks.pinned !== null) {
      const from = placeOf(marks.pinned);
      for (const index of marks.links) {
        context.beginPath();
        context.moveTo(...from);
        context.lineTo(...placeOf(index));
        stroke([css(bg, 0.7), 3], [css(text), 1]);
      }
      for (const index of marks.links) {
        circle(...placeOf(index), 3);
        context.fillStyle = css(text);
        stroke([css(bg), 2]);
        context.fill();
      }
      circle(...from, 8);
      stroke([css(bg), 5], [css(accent), 2]);
      circle(...from, 4.5);
      context.fillStyle = css(accent);
      context.fill();
    }
    if (marks.cross) {
      const [x, y] = place(marks.cross.x, marks.cross.y);
      context.beginPath();
      for (const [dx, dy] of [[8, 8], [8, -8]]) {
        context.moveTo(x - dx, y - dy);
        context.lineTo(x + dx, y + dy);
      }
      context.lineCap = "round";
      stroke([css(bg), 7], [css(text), 3]);
    }
    if (byKeys && hovered === null) { // else the ring says what Enter takes
      context.beginPath();
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
        context.moveTo(width / 2 + 6 * dx, height / 2 + 6 * dy);
        context.lineTo(width / 2 + 14 * dx, height / 2 + 14 * dy);
      }
      stroke([css(bg), 4], [css(text), 1.5]);
    }
    if (hovered !== null) {
      circle(...placeOf(hovered), Math.max(6, drawnNow.size));
      stroke([css(bg), 4], [css(text), 1.75]);
    }
    if (path) {
      context.beginPath();
      for (const spot of outline()) context.lineTo(...spot);
      context.closePath();
      context.fillStyle = css(accent, 0.12);
      context.fill();
      context.setLineDash([5, 4]);
      stroke([css(accent), 1.5]);
      context.setLineDash([]);
    }
  }

  function drawLabels(context) { // in their order; one that would meet an earlier one is left out
    const taken = [];
    Object.assign(context, { font: tokens.font, textAlign: "center", textBaseline: "middle", lineJoin: "round", lineWidth: 4 });
    context.strokeStyle = css(tokens.bg, 0.85);
    context.fillStyle = css(tokens.text);
    for (const { x, y, text } of marks.labels) {
      const words = text.length > 28 ? `${text.slice(0, 27)}…` : text;
      const [px, py] = place(x, y);
      if (px < 0 || py < 0 || px > size.width || py > size.height) continue;
      const [half, tall] = [context.measureText(words).width / 2 + 6, 10];
      const [middle, line] = [clamp(px, half, size.width - half), clamp(py, tall, size.height - tall)]; // whole, at the border too
      const box = [middle - half, line - tall, middle + half, line + tall];
      if (taken.some(([x0, y0, x1, y1]) => box[0] < x1 && x0 < box[2] && box[1] < y1 && y0 < box[3])) continue;
      taken.push(box);
      context.strokeText(words, middle, line);
      context.fillText(words, middle, line);
    }
  }

  // ---- moving about
  function moved() { // the view has changed
    clearTimeout(moving);
    moving = setTimeout(() => { moving = null; later(drawnNow.count < order?.length); }, STILL_MS);
    seen = null;
    isLaidOut = false;
    images.want([]); // nothing more is asked for until it is still
    const [x0, y0, x1, y1] = points?.box ?? [0, 0, raster.SIDE, raster.SIDE];
    view.x = clamp(view.x, x0, x1);
    view.y = clamp(view.y, y0, y1);
    later(true);
  }
  function fit() {
    if (!points) return;
    const [x0, y0, x1, y1] = points.box;
    Object.assign(view, { x: (x0 + x1) / 2, y: (y0 + y1) / 2, zoom: 1 });
    moved();
    hoverAgain();
  }
  // What lies at px, py stays there; false at the end of the zoom
  function zoomAt(factor, px = size.width / 2, py = size.height / 2) {
    const zoom = clamp(view.zoom * factor, LEAST_ZOOM, MOST_ZOOM);
    if (zoom === view.zoom) return false;
    const [x, y] = coordinates(px, py);
    view.zoom = zoom;
    const [nowX, nowY] = coordinates(px, py);
    view.x += x - nowX;
    view.y += y - nowY;
    moved();
    hoverAgain();
    return true;
  }
  function panBy(px, py) {
    view.x += px / scale();
    view.y += py / scale();
    moved();
  }
  function goTo(index, zoom = Math.max(view.zoom, 8)) {
    Object.assign(view, { x: points.x[index], y: points.y[index], zoom });
    moved();
  }

  // ---- pointer
  let mouse = null; // where it is, while it is over the map
  let path = null; // of the lasso, or the first and the last corner of the box
  let pressed = null; // {spot, last, pans, isClick, isTouch} while a button or a finger is down
  let byKeys = false; // the middle of the map is what the keys mean
  const fingers = new Map();
  const outline = () => {
    if (mode !== "box") return path;
    const [[x0, y0], [x1, y1]] = [path[0], path.at(-1)];
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]];
  };
  const spotOf = (event) => {
    const box = top.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };

  function setHover(index) {
    if (index === null && hovered === null) return;
    if (index !== hovered) later();
    hovered = index;
    node.classList.toggle("hit", index !== null);
    const box = top.getBoundingClientRect();
    const [x, y] = index === null ? [0, 0] : placeOf(index);
    hear.hover?.(index, { x: box.left + x, y: box.top + y });
  }
  function hoverAgain() { // the points have moved under the pointer, or under the middle
    if (byKeys) setHover(near(size.width / 2, size.height / 2, Math.min(size.width, size.height) / 4));
    else if (mouse && !pressed) setHover(under(...mouse, REACH_PX));
    else if (hovered !== null) setHover(null);
  }

  function select(polygon) {
    if (!points || polygon.length < 3) return;
    const [width, height] = [Math.ceil(size.width), Math.ceil(size.height)];
    const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    context.beginPath();
    for (const spot of polygon) context.lineTo(...spot);
    context.closePath();
    Object.assign(context, { fillStyle: "#00ff00", strokeStyle: "#ff0000", lineWidth: 2 });
    context.fill();
    context.stroke();
    hear.select?.(raster.enclosed(points, pixels(), context.getImageData(0, 0, width, height).data, width, height, polygon));
  }

  top.addEventListener("pointerdown", (event) => {
    const isTouch = event.pointerType === "touch";
    if (!points || (!isTouch && event.button > 1)) return;
    if (event.button === 1) event.preventDefault(); // no scrolling by the middle button
    top.setPointerCapture(event.pointerId);
    byKeys = false;
    const spot = spotOf(event);
    if (isTouch) fingers.set(event.pointerId, spot);
    if (fingers.size > 1) { // two fingers move the map, whatever the first one began
      path = pressed = null;
      setHover(null);
      return later();
    }
    const pans = !isTouch && (mode === "pan" || event.button === 1);
    pressed = { spot, last: spot, pans, isClick: true, isTouch };
    if (mode !== "pan" && !pans) path = [spot];
    else if (isTouch) setHover(under(...spot, TOUCH_REACH_PX));
  });

  // else a browser takes the first tap after a lasso lifted in haste for the end of a scroll
  if (!isPassed) top.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false });
  else top.style.touchAction = "pan-y";

  top.addEventListener("pointermove", (event) => {
    const spot = spotOf(event);
    if (event.pointerType !== "touch") mouse = spot;
    if (fingers.size > 1 && fingers.has(event.pointerId)) return pinch(event.pointerId, spot);
    if (fingers.has(event.pointerId)) fingers.set(event.pointerId, spot);
    if (!pressed) {
      if (event.pointerType === "touch") return;
      byKeys = false;
      return setHover(under(...spot, REACH_PX));
    }
    if (pressed.isClick && Math.hypot(spot[0] - pressed.spot[0], spot[1] - pressed.spot[1]) < CLICK_PX) return;
    if (pressed.isClick && !pressed.isTouch) setHover(null);
    pressed.isClick = false;
    if (path) {
      if (mode === "box") path = [path[0], spot];
      else if (Math.hypot(spot[0] - path.at(-1)[0], spot[1] - path.at(-1)[1]) >= 2) path.push(spot);
      later();
    } else if (pressed.pans) {
      node.classList.add("drag");
      panBy(pressed.last[0] - spot[0], pressed.last[1] - spot[1]);
    } else setHover(under(...spot, TOUCH_REACH_PX)); // one finger looks for the point it means
    pressed.last = spot;
  });

  function pinch(id, spot) {
    const [other] = [...fingers].find(([key]) => key !== id);
    const [a, b, fixed] = [fingers.get(id), spot, fingers.get(other)];
    const middle = (p) => [(p[0] + fixed[0]) / 2, (p[1] + fixed[1]) / 2];
    const length = (p) => Math.max(1, Math.hypot(p[0] - fixed[0], p[1] - fixed[1]));
    fingers.set(id, spot);
    panBy(middle(a)[0] - middle(b)[0], middle(a)[1] - middle(b)[1]);
    zoomAt(length(b) / length(a), ...middle(b));
  }

  function release(event) {
    fingers.delete(event.pointerId);
    node.classList.remove("drag");
    const [was, drawnPath] = [pressed, path && outline()];
    pressed = path = null;
    if (!was) return;
    if (event.type === "pointercancel") setHover(null);
    else if (drawnPath && !was.isClick) select(drawnPath);
    else if (was.isClick || was.isTouch) hear.pick?.(under(...was.last, was.isTouch ? TOUCH_REACH_PX : REACH_PX));
    hoverAgain();
    later();
  }
  top.addEventListener("pointerup", release);
  top.addEventListener("pointercancel", release);
  top.addEventListener("pointerleave", () => {
    mouse = null;
    if (!pressed && !byKeys) setHover(null);
  });
  top.addEventListener("wheel", (event) => {
    if (isPassed && !event.ctrlKey) return;
    const px = event.deltaY * (event.deltaMode ? 16 : 1) * (event.ctrlKey ? 8 : 1); // ctrl: a pinch on a touch pad
    if (points && zoomAt(2 ** (-px / 300), ...spotOf(event))) event.preventDefault(); // at the end the page scrolls on
  }, { passive: false });

  // ---- keys
  top.addEventListener("keydown", (event) => {
    if (!points || event.ctrlKey || event.metaKey || event.altKey) return;
    const { key } = event;
    const isOfTheView = key in MOVES || ["+", "=", "-", "0"].includes(key);
    if (isOfTheView) byKeys = true;
    if (key in MOVES) {
      const far = PAN_PX * (event.shiftKey ? 4 : 1);
      panBy(...MOVES[key].map((way) => way * far));
      hoverAgain();
    } else if (key === "+" || key === "=") zoomAt(STEP);
    else if (key === "-") zoomAt(1 / STEP);
    else if (key === "0") fit();
    else if (key === "Enter" && mode !== "pan") select([[0, 0], [size.width, 0], [size.width, size.height], [0, size.height]]);
    else if (key === "Enter") {
      const index = hovered ?? near(size.width / 2, size.height / 2, Math.max(size.width, size.height));
      if (index !== null) hear.pick?.(index);
    } else if (key === "l" || key === "L") {
      setMode(mode === "lasso" ? "pan" : "lasso");
      hear.mode?.(mode);
    } else if (key === "Escape") {
      byKeys = false;
      if (!path) hear.clear?.();
      path = pressed = null;
      setHover(null);
      later();
    } else return;
    event.preventDefault();
  });
  top.addEventListener("blur", () => {
    if (byKeys) setHover(null);
    byKeys = false;
    later();
  });

  // ---- what the page does with it
  function setMode(name) { // "pan", "lasso" or "box"
    mode = node.dataset.mode = name;
    path = null;
    later();
  }

  // x, y: Uint16Array; ids: what the points are, null: their places; box [x0, y0, x1, y1]: what "all" is, null: as far as
  // the points reach. Another number of points is another map.
  function show({ x, y, ids = null, box = null }) {
    const isOther = points?.x.length !== x.length;
    points = { x, y, ids, box: box ?? raster.bounds({ x, y }), ...raster.grid({ x, y }) };
    if (isOther) {
      order = raster.shuffled(x.length);
      pixel = new Int32Array(x.length);
      level = new Uint8Array(x.length);
      colouring = { kind: "category" };
      on = ink = null;
      marks = { ...NO_MARKS };
      path = pressed = null;
      portion = 1;
      images.want([]);
      images = imageCache(changed);
    }
    drawn = { x: raster.gather(x, order), y: raster.gather(y, order) };
    hovered = seen = null;
    shown = [];
    isLaidOut = false;
    if (isOther) fit();
    else hoverAgain();
    later(true);
  }

  // kind "category": palette[value] is the number of a colour, 0 is grey (none given: the value itself, grey from 8 on);
  // kind "scale": palette is "cividis" or "age", with `none` the value 0 is unknown and grey; `own` names the colours, "c1" or
  // "accent", of values that are not on the scale. values: Uint8Array, one a point.
  function colour({ kind, values, palette, none = false, own }) {
    if (values.length !== order?.length) throw new RangeError(`${values.length} colours for ${order?.length ?? 0} points`);
    colouring = { kind, palette, none, own };
    level = raster.gather(values, order);
    ink = null;
    later(true);
  }

  function dim(mask) { // Uint8Array, 0 is greyed; null: nothing is
    if (mask && mask.length !== order?.length) throw new RangeError(`A mask of ${mask.length} for ${order?.length ?? 0} points`);
    on = mask && raster.gather(mask, order);
    if (on) shown = shown.filter(({ rank }) => on[rank]);
    isLaidOut = false;
    later(true);
  }

  async function png() { // what is on screen; null before anything was
    if (!drawnNow.draws) return null;
    clearTimeout(moving);
    moving = null;
    isStale = true;
    draw();
    if (!tokens) readInk();
    const canvas = new OffscreenCanvas(ground.width, ground.height);
    const context = canvas.getContext("2d");
    context.fillStyle = css(tokens.bg);
    context.fillRect(0, 0, canvas.width, canvas.height);
    for (const layer of [ground, top]) context.drawImage(layer, 0, 0);
    return canvas.convertToBlob({ type: "image/png" });
  }

  new ResizeObserver(() => {
    const [width, height, ratio] = [node.clientWidth, node.clientHeight, Math.min(2, devicePixelRatio)];
    if (!width || !height) { size.width = 0; return; } // the tab is left; what was drawn stays
    Object.assign(size, { width, height, ratio });
    const [w, tall] = [Math.round(width * ratio), Math.round(height * ratio)];
    const isOther = ground.width !== w || ground.height !== tall;
    if (isOther) {
      for (const canvas of [ground, top]) Object.assign(canvas, { width: w, height: tall });
      isStale = true; // a canvas that was resized is empty
      isLaidOut = false;
      seen = null;
    }
    draw();
  }).observe(node);
  onTheme(() => {
    tokens = ink = null;
    later(true);
  });

  return {
    node,
    show,
    colour,
    dim,
    fit,
    goTo,
    png,
    mode: setMode,
    density(choice) { density = choice; later(true); }, // "auto", "on" or "off"
    pictures(choice) { // whether there are any
      hasPictures = choice;
      shown = [];
      layOutAgain();
    },
    marks(next) { Object.assign(marks, next); later(); }, // what is not named stays
    describe(text) { top.setAttribute("aria-label", text); },
    inView: () => (points ? raster.inView(points, pixels(), size.width, size.height) : new Uint32Array()),
    find: (id) => { // the index of what has this id, null where there is none
      if (!points) return null;
      if (!points.ids) return id >= 0 && id < points.x.length ? id : null;
      points.indices ??= new Map(Array.from(points.ids, (one, index) => [one, index])); // made when first asked for
      return points.indices.get(id) ?? null;
    },
    get levels() { // [256 * 3] of the scale, for its legend; null for categories
      if (!ink && node.isConnected) readInk();
      return ink?.levels ?? null;
    },
    get state() { return { ...view, ...drawnNow, total: order?.length ?? 0, mode, hovered }; },
  };
}
