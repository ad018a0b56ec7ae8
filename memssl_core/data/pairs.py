"""Two views of one picture with known geometry: the truth that matches between patches are checked against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageOps

from memssl_core.errors import DataError

PairKind = Literal["identity", "mirror", "crops", "homography"]

CROP_AREA = (0.4, 1.0)  # share of the picture, as in iBOT's instance correspondence
CROP_ASPECT = (3 / 4, 4 / 3)  # relative to the picture's own, customary for random resized crops
MAX_INSET = 0.25  # of a side: assumption; below 1/3 any four corners stay convex
MAX_SIDE_PX = 1024  # of what a pair is made of: more costs time and shows no model more
_CORNERS = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])


@dataclass(frozen=True, eq=False)
class KnownPair:
    """Two RGB pictures and the float64 [3, 3] that maps (x, y, 1) px of `a` to px of `b`; integers are pixel centres.

    A point of `a` that `b` does not show is mapped to a place outside `b`.
    """

    a: Image.Image
    b: Image.Image
    homography: np.ndarray


def known_pair(image: Image.Image, kind: PairKind, seed: int = 0) -> KnownPair:
    """Make a pair out of one RGB picture; the same seed, kind and picture size give the same geometry.

    A longer side than MAX_SIDE_PX is reduced to it first.

    kind:
        `identity`: the picture twice.    `mirror`: it, and itself with left and right exchanged.
        `crops`: two random crops of 0.4 to 1 of its area, both resized (bicubic, antialiased) to the picture's size, so
            that scale and aspect differ. They overlap: by more than 0.3 of the smaller in each of 20 000 draws.
        `homography`: it, and a random convex quadrilateral inside it, seen upright at the picture's size.
    Raises: DataError for another kind, or a seed that is not from 0 to 2**64 - 1.
    """
    if kind not in get_args(PairKind):
        raise DataError(f"There is no kind of pair {kind!r}; choose one of {', '.join(get_args(PairKind))}.")
    if not 0 <= seed < 2**64:
        raise DataError(f"The seed of a pair is {seed}; choose a whole number from 0 to 2**64 - 1.")
    if max(image.size) > MAX_SIDE_PX:
        image = ImageOps.contain(image, (MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.BICUBIC)
    if kind == "identity":
        return KnownPair(image, image, np.eye(3))
    if kind == "mirror":
        return KnownPair(image, ImageOps.mirror(image), np.array([[-1.0, 0, image.width - 1], [0, 1, 0], [0, 0, 1]]))
    rng = np.random.Generator(np.random.Philox(key=seed))
    return _crops(image, rng) if kind == "crops" else _perspective_view(image, rng)


def project(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (x, y) float64 [N, 2] mapped by a homography [3, 3]; not finite where a point has no image."""
    mapped = np.column_stack([points, np.ones(len(points))]) @ homography.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return mapped[:, :2] / mapped[:, 2:]


def _crops(image: Image.Image, rng: np.random.Generator) -> KnownPair:
    boxes = _box(rng), _box(rng)
    scale = np.tile(image.size, 2)
    a, b = (image.resize(image.size, Image.Resampling.BICUBIC, box=tuple(box * scale)) for box in boxes)
    to_a, to_b = (
        _through((box[:2] + _CORNERS * (box[2:] - box[:2])) * image.size, _CORNERS * image.size) for box in boxes
    )
    return KnownPair(a, b, _of_centres(to_b @ np.linalg.inv(to_a)))


def _box(rng: np.random.Generator) -> np.ndarray:
    """A random crop (x0, y0, x1, y1) in 0..1 of a picture."""
    area = rng.uniform(*CROP_AREA)
    aspect = np.exp(rng.uniform(*np.log([max(CROP_ASPECT[0], area), min(CROP_ASPECT[1], 1 / area)])))  # so that it fits
    sides = np.minimum(1, np.sqrt([area * aspect, area / aspect]))
    corner = rng.uniform(0, 1 - sides)
    return np.concatenate([corner, np.minimum(1, corner + sides)])


def _perspective_view(image: Image.Image, rng: np.random.Generator) -> KnownPair:
    seen = np.abs(_CORNERS - rng.uniform(0, MAX_INSET, (4, 2))) * image.size
    double = 2 * image.width, 2 * image.height  # then halved, which smooths the parts that are shrunk
    from_double = _through(_CORNERS * double, seen)
    b = image.transform(
        double, Image.Transform.PERSPECTIVE, tuple(from_double.ravel()[:8]), Image.Resampling.BICUBIC
    ).reduce(2)
    return KnownPair(image, b, _of_centres(_through(seen, _CORNERS * image.size)))


def _through(points: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The homography that takes four points [4, 2] to four others, its last entry 1."""
    rows = []
    for (x, y), (u, v) in zip(points, images, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    return np.append(np.linalg.solve(np.array(rows), images.ravel()), 1).reshape(3, 3)


def _of_centres(homography: np.ndarray) -> np.ndarray:
    """For places counted from the first pixel's centre what the given one is for those from the corner (Pillow's)."""
    to_corner = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    return np.linalg.inv(to_corner) @ homography @ to_corner
