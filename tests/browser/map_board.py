"""The canvas of the map, alone in a page of the server, and the same in NumPy."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from playwright.sync_api import Page

SIDE = 65536
PAD_PX = 24
WIDTH, HEIGHT = 700, 420  # of the map in these tests, without its border
MOUNT = """async () => {
  document.body.innerHTML = '<div class=ui id=box style="width: 702px; max-width: 100%"></div>';
  document.body.style.margin = '0';
  const make = (tag, given) => Object.assign(document.createElement(tag), given);
  document.head.append(make('meta', { name: 'viewport', content: 'width=device-width' }));
  const sheet = make('link', { rel: 'stylesheet', href: '/ui/ui.css' });
  const loaded = new Promise(done => { sheet.onload = done; });
  document.head.append(sheet);
  await loaded;
  for (const name of ['raster', 'mappictures', 'mapcanvas']) window[name] = await import(`/ui/${name}.js`);
  window.heard = [];
  const hear = name => [name, (...given) => heard.push([name, ...given])];
  const names = ['hover', 'pick', 'select', 'view', 'mode', 'clear'];
  window.pictureOf = () => null;
  const picture = index => { heard.push(['picture', index]); return pictureOf(index); };
  window.map = mapcanvas.mapCanvas({ ...Object.fromEntries(names.map(hear)), picture });
  map.node.style.height = '422px';
  document.getElementById('box').append(map.node);
  window.still = async (ms = 0) => { // after what was asked for is drawn
    await new Promise(done => setTimeout(done, ms));
    for (let i = 0; i < 2; i++) await new Promise(requestAnimationFrame);
  };
}"""
SHOW = "([x, y]) => { map.show({ x: Uint16Array.from(x), y: Uint16Array.from(y) }); return still(); }"
COLOUR = (
    "([kind, values, palette]) => { map.colour({ kind, values: Uint8Array.from(values), palette }); return still(); }"
)
OKABE_ITO = ["#a9b0bc", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#f0e442"]  # in light


@dataclass
class Board:
    """A map on screen, and the same in NumPy."""

    page: Page
    x: np.ndarray = field(default_factory=lambda: np.empty(0))
    y: np.ndarray = field(default_factory=lambda: np.empty(0))

    def show(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x, self.y = x.astype(float), y.astype(float)
        self.page.evaluate(SHOW, [x.tolist(), y.tolist()])

    def colour(self, kind: str, values: np.ndarray, palette: object = None) -> None:
        self.page.evaluate(COLOUR, [kind, values.tolist(), palette])

    def still(self, ms: int = 0) -> None:
        self.page.evaluate("ms => still(ms)", ms)

    @property
    def state(self) -> dict:
        return self.page.evaluate("map.state")

    @property
    def scale(self) -> float:
        width, height = self.page.evaluate("[map.node.clientWidth, map.node.clientHeight]")
        across = (width - 2 * PAD_PX) / (self.x.max() - self.x.min())
        return self.state["zoom"] * min(across, (height - 2 * PAD_PX) / (self.y.max() - self.y.min()))

    def places(self) -> np.ndarray:
        """[N, 2] px of the map."""
        width, height = self.page.evaluate("[map.node.clientWidth, map.node.clientHeight]")
        state, scale = self.state, self.scale
        return np.stack([(self.x - state["x"]) * scale + width / 2, (self.y - state["y"]) * scale + height / 2], axis=1)

    def pixels(self, layer: str = "canvas") -> np.ndarray:
        """[H, W, 4] of the points alone, or of what lies over them: ".overlay"."""
        url = self.page.evaluate("layer => map.node.querySelector(layer).toDataURL()", layer)
        return np.array(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGBA"))

    def heard(self, name: str) -> list:
        return self.page.evaluate("name => heard.filter(told => told[0] === name).map(told => told[1])", name)

    def selected(self) -> list[int]:
        return self.page.evaluate("[...heard.filter(told => told[0] === 'select').at(-1)[1]]")

    def drag(self, spots: list[tuple[float, float]]) -> None:
        self.page.mouse.move(*self.window(spots[0]))
        self.page.mouse.down()
        for spot in spots[1:]:
            self.page.mouse.move(*self.window(spot))
        self.page.mouse.up()
        self.still()

    def window(self, spot: tuple[float, float]) -> tuple[float, float]:
        box = self.page.evaluate("() => { const b = map.node.firstChild.getBoundingClientRect(); return [b.x, b.y]; }")
        return float(spot[0] + box[0]), float(spot[1] + box[1])


def cloud(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y uint16 and the number of the cluster."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 12, n)
    centres, spread = rng.uniform(10_000, 55_000, (12, 2)), rng.uniform(500, 4000, (12, 1))
    points = np.clip(centres[label] + rng.normal(size=(n, 2)) * spread[label], 0, SIDE - 1)
    return points[:, 0].astype(np.uint16), points[:, 1].astype(np.uint16), label.astype(np.uint8)


def rgb(hexadecimal: str) -> np.ndarray:
    return np.array([int(hexadecimal[at : at + 2], 16) for at in (1, 3, 5)])


def disc(size: int, rim: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Rows and columns of a dot and of its rim, from the pixel of its point."""
    inner, outer, middle, edge = [], [], (size - 1) / 2, (size - 1) // 2
    for row in range(-rim, size + rim):
        for column in range(-rim, size + rim):
            away = math.hypot(row - middle, column - middle)
            if size < 3 or away <= size / 2:
                inner.append((row - edge, column - edge))
            elif away <= size / 2 + rim:
                outer.append((row - edge, column - edge))
    return inner, outer


# ---- the pure functions


def winding(polygon: np.ndarray, place: np.ndarray) -> int:
    """How often a closed line goes round a place: the sum of the angles under which it sees the sides."""
    seen = polygon - place
    angles = np.arctan2(seen[:, 1], seen[:, 0])
    turns = (np.roll(angles, -1) - angles + np.pi) % (2 * np.pi) - np.pi
    return round(turns.sum() / (2 * np.pi))
