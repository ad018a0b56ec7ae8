"""Pictures for files: maps laid over a picture, neighbours side by side, lines between matches, a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from analysis.attention import Attention
from analysis.heads import HeadTable
from analysis.matches import Matches, holding
from analysis.neighbours import Neighbours
from analysis.pca import Pca
from memssl_core.bundle.table import MemoryTable
from memssl_core.data.images import Frame, ImageSource, decode_image
from memssl_core.errors import ImageError

_GREY, _INK, _PAPER, _GAP, _CAPTION = (169, 176, 188), (32, 32, 32), (255, 255, 255), 6, 16
_DARK = (12, 15, 19)
PALETTE = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0), (86, 180, 233), (240, 228, 66))
"""blue, orange, green, purple, vermilion, sky, yellow. Source: Okabe and Ito, "Color Universal Design", 2008"""
FAR, MOST_RINGS = 4, 200
"""times the median norm, from which a token is told as an outlier [assumption]; more rings would hide the map"""
CLIP, SHOWN_PX = 0.995, 2048
"""the quantile at which colours end, and the longest side of a picture that maps are drawn on: as on the page"""
# Ten colours from dark to light along the perceptually even "inferno" scale, as in ui/static/colormap.js.
_INFERNO = np.array(
    [(0, 0, 4), (27, 12, 65), (74, 12, 107), (120, 28, 109), (165, 44, 96)]
    + [(207, 68, 70), (237, 105, 37), (251, 155, 6), (247, 209, 61), (252, 255, 164)]
)


def inferno(values: np.ndarray) -> np.ndarray:
    """Any shape, 0..1 -> uint8 [..., 3]: black through red to pale yellow, lighter for more."""
    places = np.linspace(0, 1, len(_INFERNO))
    channels = [np.interp(np.clip(values, 0, 1), places, _INFERNO[:, channel]) for channel in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def high(weights: np.ndarray) -> float:
    """The weight from which a map has the lightest colour, so that one huge weight does not hide the others."""
    return float(np.quantile(weights, CLIP))


def shown(picture: Image.Image) -> Image.Image:
    """A copy at the size of the page's photograph: reduced to a longest side of SHOWN_PX, never enlarged."""
    photo = picture.copy()
    photo.thumbnail((SHOWN_PX, SHOWN_PX), reducing_gap=2.0)
    return photo


def overlay(photo: Image.Image, colours: np.ndarray, alpha: np.ndarray | float, *, smooth: bool = False) -> Image.Image:
    """A photograph under colours uint8 [rows, columns, 3] of its patches, which cover it by `alpha`, 0..1 each."""
    opacities = np.broadcast_to(255 * np.asarray(alpha), colours.shape[:2]).round().astype(np.uint8)
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    layer = Image.fromarray(np.dstack([colours, opacities])).resize(photo.size, how)
    drawn = photo.copy()
    drawn.paste(layer, mask=layer)
    return drawn


def heat(photo: Image.Image, weights: np.ndarray, top: float, *, opacity: float = 0.85) -> Image.Image:
    """A photograph under a map [rows, columns], smooth; the stronger, the lighter and denser, from 0 to `top`."""
    shares = (weights / max(top, 1e-12)).clip(0, 1)
    return overlay(photo, inferno(shares), opacity * (0.22 + 0.78 * shares), smooth=True)


def attention_map(
    picture: Image.Image,
    weights: np.ndarray,
    top: float,
    *,
    mass: float = 1.0,
    asked: Sequence[int] = (),
    opacity: float = 0.85,
) -> Image.Image:
    """One map [rows, columns] over the picture, weights of `top` and above in the lightest colour, with a ring at the
    strongest patch and a square around each in `asked`. Below a `mass` of 1 only the fewest strongest patches that hold
    this share are coloured, in an outline; the others are darkened."""
    photo = shown(picture)
    if mass >= 1:
        marks = _Marks(heat(photo, weights, top, opacity=opacity), weights.shape)
    else:
        kept = holding(weights.ravel(), mass).reshape(weights.shape)
        colours = inferno(weights / max(top, 1e-12))
        marks = _Marks(overlay(_darkened(photo, opacity), colours, opacity * kept), kept.shape)
        marks.outline(kept)
    marks.peak(int(weights.argmax()))
    return marks.done(asked)


def coloured_heads(
    picture: Image.Image,
    heads: np.ndarray,
    colours: Sequence[int | None],
    *,
    asked: Sequence[int] = (),
    opacity: float = 0.75,
) -> Image.Image:
    """Each patch in the colour of its attention head in int [rows, columns]; where that is -1 the picture is darkened.
    A square is around each patch in `asked`.

    `colours`: of each head its place in PALETTE; the heads without one are grey.
    """
    levels = np.array([_GREY if place is None else PALETTE[place] for place in colours], np.uint8)
    drawn = overlay(_darkened(shown(picture), opacity), levels[heads.clip(0)], opacity * (heads >= 0))
    return _Marks(drawn, heads.shape).done(asked)


def norms_map(
    picture: Image.Image, norms: np.ndarray, *, asked: Sequence[int] = (), opacity: float = 0.75
) -> Image.Image:
    """Patch norms [rows, columns] over the picture, colours from the least to the quantile CLIP. A ring marks each
    patch longer than FAR times the median, a square each in `asked`."""
    low = float(norms.min())
    colours = inferno((norms - low) / max(high(norms) - low, 1e-12))
    marks = _Marks(overlay(shown(picture), colours, opacity), norms.shape)
    longest = norms.ravel().argsort()[::-1][:MOST_RINGS]
    for patch in longest[norms.ravel()[longest] > FAR * np.median(norms)].tolist():
        marks.ring(patch, max(6 * marks.unit, 0.7 * max(marks.across, marks.down)))
    return marks.done(asked)


def pca_sheet(found: Pca, images: Sequence[ImageSource], *, side_px: int = 512) -> Image.Image:
    """Each picture beside the colours of its principal components; what the model did not see of it stays grey."""
    parts = (found.colours_a, found.frame_a), (found.colours_b, found.frame_b)
    shown = [(colours, frame) for colours, frame in parts if colours is not None]
    titled = []
    for name, image, (colours, frame) in zip("ab", images, shown, strict=False):
        small = _shrunk(decode_image(image), side_px)
        x0, y0, x1, y1 = _seen(frame, small.size) if frame else (0, 0, *small.size)
        patches = small.convert("L").convert("RGB")
        patches.paste(Image.fromarray(colours).resize((x1 - x0, y1 - y0), Image.Resampling.NEAREST), (x0, y0))
        titled += [(f"picture {name}", small), (f"components of {name}", patches)]
    return _sheet(titled, side_px)


def head_table_sheet(table: HeadTable, *, cell_px: int = 64) -> Image.Image:
    """Transformer blocks by attention heads; darker cells matter more. KL, or how far the embedding moves."""
    values, what = (table.moved, "1 - cosine of the embedding") if table.kl is None else (table.kl, "KL, nats")
    blocks, heads = values.shape
    left, top, height = 60, 2 * _CAPTION + 8, cell_px // 2
    sheet = Image.new("RGB", (left + max(heads, 5) * cell_px + _GAP, top + blocks * height + _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, 2), f"Silencing an attention head: {what}", fill=_INK)
    for head in range(heads):
        pen.text((left + (head + 0.5) * cell_px, top - 2), f"head {head}", fill=_INK, anchor="ms")
    shares = values / max(float(values.max()), 1e-30)
    for block, head in np.ndindex(blocks, heads):
        x, y, share = left + head * cell_px, top + block * height, float(shares[block, head])
        if head == 0:
            pen.text((_GAP, y + height / 2), f"block {table.blocks[block]}", fill=_INK, anchor="lm")
        colour = tuple(round(255 - share * (255 - channel)) for channel in PALETTE[0])
        pen.rectangle((x, y, x + cell_px - 2, y + height - 2), fill=colour)
        text = _PAPER if share > 0.5 else _INK
        pen.text((x + cell_px / 2, y + height / 2), f"{values[block, head]:.3g}", fill=text, anchor="mm")
    return sheet


def attention_sheet(picture: Image.Image, attention: Attention, *, tile_px: int = 240) -> Image.Image:
    """The picture, the mean over the attention heads, and each attention head, for the mean of the queries."""
    small = _shrunk(picture, tile_px)
    maps = attention.maps().mean(1)  # [attention heads, rows, columns]
    top = high(maps)
    titled = [("picture", small), ("mean", heat(small, maps.mean(0), top))]
    titled += [(f"attention head {index}", heat(small, one, top)) for index, one in enumerate(maps)]
    return _sheet(titled, tile_px)


def neighbours_sheet(
    picture: Image.Image, neighbours: Neighbours, memory: MemoryTable, *, tile_px: int = 96
) -> Image.Image:
    """The picture and its neighbours with their scores; grey where a memory has no thumbnail."""
    scored = zip(neighbours.scores, neighbours.ids.tolist(), strict=True)
    found = [(f"{score:.3f}", memory.thumbnail(slot)) for score, slot in scored]
    return _sheet([(f"query, {neighbours.space}", _shrunk(picture, tile_px)), *_tiles(found, tile_px)], tile_px)


def results_sheet(
    answers: Sequence[tuple[Sequence[Image.Image], Sequence[tuple[str, bytes]]]], *, tile_px: int = 96
) -> Image.Image:
    """One block a query: its pictures, then a title and thumbnail for each result; grey where there is none."""
    blocks = []
    for pictures, found in answers:
        asked = [("query", _shrunk(picture, tile_px)) for picture in pictures]
        blocks.append(_sheet([*asked, *_tiles(found, tile_px)], tile_px))
    sheet = Image.new("RGB", (max(block.width for block in blocks), sum(block.height for block in blocks)), _PAPER)
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    return sheet


def matches_sheet(a: Image.Image, b: Image.Image, matches: Matches, *, side_px: int = 640) -> Image.Image:
    """Both pictures side by side with a line for each match; lighter lines have higher cosines."""
    left, right = _shrunk(a, side_px), _shrunk(b, side_px)
    sheet = Image.new("RGB", (left.width + right.width + 3 * _GAP, max(left.height, right.height) + 2 * _GAP), _PAPER)
    corners = [(_GAP, _GAP), (left.width + 2 * _GAP, _GAP)]
    for corner, picture in zip(corners, (left, right), strict=True):
        sheet.paste(picture, corner)
    pen = ImageDraw.Draw(sheet)
    low, high = (float(f(matches.scores)) for f in (np.min, np.max)) if len(matches.scores) else (0.0, 1.0)
    colours = inferno(0.35 + 0.65 * (matches.scores - low) / max(high - low, 1e-6))
    scales = left.width / a.width, right.width / b.width
    for i in reversed(range(len(matches.scores))):
        ends = [
            tuple((points[i] + 0.5) * scale + corner)
            for points, scale, corner in zip((matches.points_a, matches.points_b), scales, corners, strict=True)
        ]
        pen.line(ends, fill=_INK, width=4)
        pen.line(ends, fill=tuple(colours[i].tolist()), width=2)
        for x, y in ends:
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=tuple(colours[i].tolist()), outline=_INK)
    return sheet


def _tiles(found: Sequence[tuple[str, bytes]], tile_px: int) -> list[tuple[str, Image.Image]]:
    tiles = []
    for title, data in found:
        try:
            tiles.append((title, _shrunk(decode_image(data), tile_px)))
        except ImageError:
            tiles.append((title, Image.new("RGB", (tile_px, tile_px), _GREY)))
    return tiles


def _darkened(photo: Image.Image, opacity: float) -> Image.Image:
    return overlay(photo, np.array([[_DARK]], np.uint8), 0.4 * opacity)


class _Marks:
    """Lines over a picture of (rows, columns) patches: white with a dark edge, as wide as suits the picture."""

    def __init__(self, drawn: Image.Image, grid: tuple[int, ...]) -> None:
        self.drawn, self.columns = drawn, grid[1]
        self.across, self.down = drawn.width / grid[1], drawn.height / grid[0]  # px of a patch
        self.unit = max(1, min(drawn.size) / 640)
        self._fine = 4 if max(drawn.size) <= 1024 else 2  # drawn so much larger: its edges become smooth
        self._layer = Image.new("RGBA", (self._fine * drawn.width, self._fine * drawn.height))
        self._pen = ImageDraw.Draw(self._layer)

    def outline(self, kept: np.ndarray) -> None:
        """Where patches of bool [rows, columns] that are kept meet others, or the edge."""
        padded = np.pad(kept, 1)
        upright = np.argwhere(padded[:, 1:] != padded[:, :-1]) - (1, 0)
        level = np.argwhere(padded[1:] != padded[:-1]) - (0, 1)
        edges = [(column, row, column, row + 1) for row, column in upright.tolist()]
        edges += [(column, row, column + 1, row) for row, column in level.tolist()]
        for colour, width in (((*_DARK, 191), 3), ((*_PAPER, 255), 1.25)):
            for edge in edges:
                self._line(self._pen.rectangle, edge, colour, width)

    def peak(self, patch: int) -> None:
        """A ring in the patch, or around it where patches are small."""
        least, most = 9 * self.unit, 0.5 * min(self.drawn.size) - 2 * self.unit
        self.ring(patch, max(2 * self.unit, min(max(least, 0.5 * min(self.across, self.down) - 2 * self.unit), most)))

    def ring(self, patch: int, radius: float) -> None:
        row, column = divmod(patch, self.columns)
        reach, tall = radius / self.across, radius / self.down
        box = column + 0.5 - reach, row + 0.5 - tall, column + 0.5 + reach, row + 0.5 + tall
        for colour, width in (((20, 24, 31, 255), 4), ((*_PAPER, 255), 1.75)):
            self._line(self._pen.ellipse, box, colour, width)

    def done(self, asked: Sequence[int]) -> Image.Image:
        """The picture with its marks, and squares around the patches that were asked."""
        for row, column in (divmod(patch, self.columns) for patch in asked):
            for colour, width in (((*_DARK, 217), 4), ((*_PAPER, 255), 2)):
                self._line(self._pen.rectangle, (column, row, column + 1, row + 1), colour, width)
        layer = self._layer.reduce(self._fine)
        self.drawn.paste(layer, mask=layer)
        return self.drawn

    def _line(self, draw: Callable[..., None], box: tuple[float, ...], colour: tuple[int, ...], width: float) -> None:
        """Along a box in patches, `width` units wide."""
        x0, y0, x1, y1 = (at * side for at, side in zip(box, (self.across, self.down) * 2, strict=True))
        reach = width * self.unit / 2
        left, top, right, bottom = (round(self._fine * at) for at in (x0 - reach, y0 - reach, x1 + reach, y1 + reach))
        draw((left, top, right - 1, bottom - 1), outline=colour, width=max(1, round(2 * self._fine * reach)))


def _seen(frame: Frame, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) px of a picture shown in this (width, height) that the patches cover."""
    box = *frame.box_of(0)[:2], *frame.box_of(frame.rows * frame.columns - 1)[2:]
    x0, y0, x1, y1 = (
        round((at + 0.5) / whole * shown)
        for at, whole, shown in zip(box, (frame.width, frame.height) * 2, size * 2, strict=True)
    )
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def _shrunk(picture: Image.Image, tile_px: int) -> Image.Image:
    scale = tile_px / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _sheet(titled: Sequence[tuple[str, Image.Image]], tile_px: int) -> Image.Image:
    columns = min(len(titled), max(2, 960 // tile_px))
    rows = -(-len(titled) // columns)
    width, height = tile_px + _GAP, max(tile.height for _, tile in titled) + _CAPTION + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for index, (title, tile) in enumerate(titled):
        left, top = _GAP + index % columns * width, _GAP + index // columns * height
        pen.text((left, top), title, fill=_INK)
        sheet.paste(tile, (left, top + _CAPTION))
    return sheet
