// Pictures on the map: which of them have room, those that were loaded, and drawing one.

const KEPT = 512;
const RETRY_MS = 30_000;
const AT_ONCE = 6; // as many as a browser asks a server for

// Squares of `side` centred on [x[i], y[i]]: the indices of those that meet none that was kept before, at most `most`
export function withRoom(x, y, side, most) {
  const kept = [];
  for (let i = 0; i < x.length && kept.length < most; i++) {
    if (kept.every((k) => Math.abs(x[i] - x[k]) >= side || Math.abs(y[i] - y[k]) >= side)) kept.push(i);
  }
  return kept;
}

// Images by URL, of which the ones used last are kept. What fails is not asked for again for a while.
// `changed(hasFailed)` is called after each.
export function imageCache(changed, most = KEPT) {
  const images = new Map(); // the one used last at the end
  const failed = new Map(); // when
  const underWay = new Set();
  let wanted = [];
  const hasFailed = (url) => performance.now() - (failed.get(url) ?? -Infinity) < RETRY_MS;

  async function load(url) {
    underWay.add(url);
    const image = Object.assign(new Image(), { src: url });
    const isThere = await image.decode().then(() => true, () => false);
    underWay.delete(url);
    if (isThere) images.set(url, image);
    else failed.set(url, performance.now());
    if (images.size > most) images.delete(images.keys().next().value);
    next();
    changed(!isThere);
  }
  function next() {
    while (wanted.length && underWay.size < AT_ONCE) {
      const url = wanted.shift();
      if (!images.has(url) && !hasFailed(url) && !underWay.has(url)) load(url);
    }
  }

  return {
    want(urls) { wanted = [...urls]; next(); }, // what was wanted before and has not begun is forgotten
    hasFailed,
    get(url) {
      const image = images.get(url);
      if (image) {
        images.delete(url);
        images.set(url, image);
      }
      return image ?? null;
    },
  };
}

// The middle square of an image on a canvas, its own middle at x, y; `side` px with its rims [[colour, px], ...], the outer
// one first. All of them begin and end with a pixel of the screen, which has `ratio` for one of the page.
export function drawPicture(context, image, x, y, side, rims, ratio) {
  const whole = (px) => Math.round(px * ratio) / ratio;
  let [left, top, length] = [whole(x - side / 2), whole(y - side / 2), side];
  for (const [colour, width] of rims) {
    const rim = whole(width);
    context.fillStyle = colour;
    context.fillRect(left, top, length, length);
    [left, top, length] = [left + rim, top + rim, length - 2 * rim];
  }
  const { naturalWidth: width, naturalHeight: height } = image;
  const cut = Math.min(width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, (width - cut) / 2, (height - cut) / 2, cut, cut, left, top, length, length);
}
