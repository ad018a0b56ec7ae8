"""Pictures for files: attention laid over a picture, neighbours side by side, lines between matches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from analysis.attention import Attention
from analysis.matches import Matches
from analysis.neighbours import Neighbours
from memssl_core.data.images import decode_image
from memssl_core.errors import ImageError

_GREY, _INK, _PAPER, _GAP, _CAPTION = (160, 160, 160), (32, 32, 32), (255, 255, 255), 6, 16
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
