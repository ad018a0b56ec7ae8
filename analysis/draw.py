"""Pictures for files: maps laid over a picture, neighbours side by side, lines between matches, a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from analysis.attention import Attention
from analysis.heads import HeadTable
from analysis.matches import Matches, holding
from analysis.neighbours import Neighbours
from analysis.pca import Pca
from memssl_core.data.images import Frame, ImageSource, decode_image
from memssl_core.errors import ImageError

_GREY, _INK, _PAPER, _GAP, _CAPTION = (160, 160, 160), (32, 32, 32), (255, 255, 255), 6, 16
PALETTE = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0), (86, 180, 233), (240, 228, 66))
"""blue, orange, green, purple, vermilion, sky, yellow. Source: Okabe and Ito, "Color Universal Design", 2008"""
FAR = 4
"""times the median norm, from which a token is told as an outlier [assumption]"""
# Nine colours from dark to light along the perceptually even "inferno" scale.
_INFERNO = np.array(
    [(0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85)]
    + [(227, 89, 51), (249, 140, 10), (249, 201, 50), (252, 255, 164)]
)


def inferno(values: np.ndarray) -> np.ndarray:
    """Any shape, 0..1 -> uint8 [..., 3]: black through red to pale yellow, lighter for more."""
    places = np.linspace(0, 1, len(_INFERNO))
    channels = [np.interp(np.clip(values, 0, 1), places, _INFERNO[:, channel]) for channel in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def overlay(picture: Image.Image, weights: np.ndarray, *, opacity: float = 0.6) -> Image.Image:
    """A picture in grey under its attention map [rows, columns]; the strongest patch is the lightest colour."""
    colours = Image.fromarray(inferno(weights / max(float(weights.max()), 1e-12)))
    grey = picture.convert("L").convert("RGB")
    return Image.blend(grey, colours.resize(picture.size, Image.Resampling.NEAREST), opacity)


def attention_map(
    picture: Image.Image,
    weights: np.ndarray,
    *,
    mass: float = 1.0,
    clip: float = 0.995,
    opacity: float = 0.6,
    side_px: int = 1024,
) -> Image.Image:
    """One map [rows, columns] over the picture, the quantile `clip` and above in the lightest colour. Below a `mass` of
    1 only the fewest strongest patches that hold this share are coloured, in an outline; the others are dark."""
    small = _shrunk(picture, side_px)
    drawn = overlay(small, np.minimum(weights, np.quantile(weights, clip)), opacity=opacity)
    if mass >= 1:
        return drawn
    kept = holding(weights.ravel(), mass).reshape(weights.shape)
    mask = Image.fromarray(kept).resize(small.size, Image.Resampling.NEAREST)
    drawn = Image.composite(drawn, ImageEnhance.Brightness(small.convert("L").convert("RGB")).enhance(0.4), mask)
    _outline(drawn, kept)
    return drawn


def coloured_heads(
    picture: Image.Image, heads: np.ndarray, colours: Sequence[int | None], *, opacity: float = 0.6, side_px: int = 1024
) -> Image.Image:
    """The picture in grey, each patch in the colour of its attention head in int [rows, columns]; -1 has none.

    `colours`: of each head its place in PALETTE; the heads without one are grey.
    """
    small = _shrunk(picture, side_px)
    levels = np.array([_GREY if place is None else PALETTE[place] for place in colours], np.uint8)
    grey = small.convert("L").convert("RGB")
    coloured = Image.fromarray(levels[heads.clip(0)]).resize(small.size, Image.Resampling.NEAREST)
    mask = Image.fromarray(heads >= 0).resize(small.size, Image.Resampling.NEAREST)
    return Image.composite(Image.blend(grey, coloured, opacity), ImageEnhance.Brightness(grey).enhance(0.6), mask)


def norms_map(
    picture: Image.Image, norms: np.ndarray, *, clip: float = 0.995, opacity: float = 0.6, side_px: int = 1024
) -> Image.Image:
    """Patch norms [rows, columns] over the picture, colours from the least to the quantile `clip`. A ring marks each
    patch longer than FAR times the median."""
    small = _shrunk(picture, side_px)
    low, high = float(norms.min()), float(np.quantile(norms, clip))
    drawn = overlay(small, ((norms - low) / max(high - low, 1e-12)).clip(0, 1), opacity=opacity)
    pen, across, down = ImageDraw.Draw(drawn), small.width / norms.shape[1], small.height / norms.shape[0]
    radius = max(6.0, 0.7 * max(across, down))
    for row, column in np.argwhere(norms > FAR * np.median(norms)).tolist():
        x, y = (column + 0.5) * across, (row + 0.5) * down
        for width, colour in ((6, _INK), (2, _PAPER)):
            reach = radius + width / 2
            pen.ellipse((x - reach, y - reach, x + reach, y + reach), outline=colour, width=width)
    return drawn


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
    titled = [("picture", small), ("mean", overlay(small, maps.mean(0)))]
    titled += [(f"attention head {index}", overlay(small, one)) for index, one in enumerate(maps)]
    return _sheet(titled, tile_px)


def neighbours_sheet(picture: Image.Image, neighbours: Neighbours, *, tile_px: int = 96) -> Image.Image:
    """The picture and its neighbours with their scores; grey where a memory has no thumbnail."""
    found = [(f"{score:.3f}", row["thumbnail"]) for score, row in zip(neighbours.scores, neighbours.rows, strict=True)]
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


def _outline(drawn: Image.Image, kept: np.ndarray) -> None:
    """Lines where patches of bool [rows, columns] that are kept meet others, or the edge."""
    pen, across, down = ImageDraw.Draw(drawn), drawn.width / kept.shape[1], drawn.height / kept.shape[0]
    padded = np.pad(kept, 1)
    for row, column in np.argwhere(padded[:, 1:] != padded[:, :-1]).tolist():
        pen.line((column * across, (row - 1) * down, column * across, row * down), fill=_PAPER, width=2)
    for row, column in np.argwhere(padded[1:] != padded[:-1]).tolist():
        pen.line(((column - 1) * across, row * down, column * across, row * down), fill=_PAPER, width=2)


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
