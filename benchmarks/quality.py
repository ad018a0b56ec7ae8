"""Which features find the same place, or the same thing, in another picture, and how much of that was learned?

python benchmarks/quality.py [--model SOURCE] [--photos DATA] [--drawn DATA] [--recolour], for every facet and
transformer block, by nearest neighbour of patches by cosine:

- another view of one picture (random crops, the mirror image, a change of perspective): per cent of patches whose match
  lies within 0, 1 and 2 patches of the true place;
- another drawn picture of the same class: per cent of patches of the object, and of the ground, that find the like.

Beside them what the same architecture finds with random weights. Mean over pictures, and standard deviation over draws:
each has other views, another random start and, where there are more than it takes, other pictures.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image
from timing import machine
from torchvision.transforms.v2 import functional as F

from analysis.workbench import Workbench
from memssl_core.config import TrainConfig
from memssl_core.data.datasets import Images, open_images
from memssl_core.data.drawn import draw
from memssl_core.data.images import Frame, decode_image
from memssl_core.data.pairs import KnownPair, PairKind, known_pair, project
from memssl_core.errors import DataError
from memssl_core.evaluation.correspondence import chance_accuracy, instance_accuracy, true_patches
from memssl_core.model.backbone import create_backbone
from memssl_core.model.features import Facet
from memssl_core.model.matching import Rule, match
from memssl_core.sources import Model, open_model
from ui.examples import DRAWN, examples
from ui.facts import first_size

KINDS: tuple[PairKind, ...] = ("crops", "mirror", "homography")
RADII = (0, 1, 2)
METRICS = (*(f"acc@{radius}" for radius in RADII), "coverage")
PLACELESS, MUTUAL = "default, position removed", "default, mutual only"
CHANCE, SAME, TRUE = "chance", "same place in the picture", "true place"

Frames = tuple[Frame, Frame]
Prediction = tuple[str, np.ndarray, Frames]
"""row of the table, patches [M, 2] of pictures A and B, and where those lie"""
Found = dict[tuple[str, str], np.ndarray]
"""(which patches, row of the table) -> METRICS [draws, kinds, pictures, 4], nan where nothing could be counted"""


@dataclass(frozen=True)
class Setting:
    model: str = "embedded"
    photos: str | None = None
    """a data source; the photographs that come with installed packages if left out"""
    drawn: str = "drawn:1:48"
    """drawn pictures, of which the object is known; the embedded model was trained on seed 0"""
    pictures: int = 24
    """of each source in a draw, at most"""
    draws: int = 3
    size: int | None = None
    """long side in px; the one that the page begins with if left out"""
    recolour: bool = False
    """other colours in the second view: without, what looks the same is the same"""


def untrained(model: Model, seed: int) -> Model:
    """The model's architecture with fresh random weights."""
    config = model.config
    positions = config["memssl"].get("positions") or "timm"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = create_backbone(config["architecture"], positions=positions, **(config.get("model_args") or {}))
    return replace(model, backbone=backbone.requires_grad_(False).eval(), head=None, memory=None, student=None)


def installed_photographs() -> Images:
    reads = {handle: example.read for handle, example in examples().items() if handle not in DRAWN}
    files = tuple(reads.values())
    return Images("installed packages", tuple(reads), None, (), lambda image_id: decode_image(files[image_id]()))


def entries_of(model: Model) -> dict[str, tuple[Facet, int]]:
    """By name, every facet and transformer block, or stage."""
    card = model.card
    return {f"{facet} {layer}": (facet, layer) for facet in card["facets"] for layer in range(card["layers"])}


def default_of(model: Model) -> str:
    facet, layer = Workbench(model).match_default
    return f"{facet} {layer % model.card['layers']}"


# One pair of pictures


def nearest(a: np.ndarray, b: np.ndarray, rule: Rule = "argmax") -> np.ndarray:
    """Pairs of patches [M, 2] by cosine."""
    unit_a, unit_b = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in (a, b))
    return match(unit_a, unit_b, rule)[0]


def by_features(model: Model, start: Model, a: Image.Image, b: Image.Image, size: int) -> Iterator[Prediction]:
    """Every entry of a model and of its start, and what else may be done with the default one."""
    for prefix, bench in (("", Workbench(model)), ("start ", Workbench(start))):
        for row, (facet, layer) in entries_of(model).items():
            pair = bench.pair(a, b, facet, layer, size)
            frames = pair.frame_a, pair.frame_b
            yield prefix + row, nearest(pair.a, pair.b), frames
            if prefix + row == default_of(model):
                placeless = bench.pair(a, b, facet, layer, size, position=False)
                yield PLACELESS, nearest(placeless.a, placeless.b), frames
                yield MUTUAL, nearest(pair.a, pair.b, "mutual"), frames
                same_a, same_b = (place_codes(frame, centres(frame)) for frame in frames)
                yield SAME, nearest(same_a, same_b), frames


def by_true_place(homography: np.ndarray, frames: Frames) -> Prediction:
    frame_a, frame_b = frames
    targets = project(homography, centres(frame_a))
    return TRUE, nearest(place_codes(frame_b, targets), place_codes(frame_b, centres(frame_b))), frames


def place_codes(frame: Frame, points: np.ndarray) -> np.ndarray:
    """[N, 4] for points (x, y) [N, 2]: by cosine the nearest patch centre is that of the patch that holds the point."""
    x, y = np.pi * (points.T + 0.5) / [[frame.width], [frame.height]]
    return np.stack([np.cos(x), np.sin(x), np.cos(y), np.sin(y)], 1)


def centres(frame: Frame) -> np.ndarray:
    """(x, y) of all patch centres [N, 2]."""
    return np.array([frame.centre_of(patch) for patch in range(frame.rows * frame.columns)])


def recoloured(picture: Any, seed: int) -> Any:
    """The published colour jitter of training views, always applied and in one order."""
    *by, hue = TrainConfig().colour_jitter
    rng = np.random.default_rng(seed)
    for adjust, change in zip((F.adjust_brightness, F.adjust_contrast, F.adjust_saturation), by, strict=True):
        picture = adjust(picture, rng.uniform(1 - change, 1 + change))
    return F.adjust_hue(picture, rng.uniform(-hue, hue))


def mask_of(uri: str, side_px: int) -> np.ndarray:
    """bool [side, side]: where a drawn picture shows its object."""
    gallery, index = map(int, uri.removeprefix("drawn:").split(":"))
    return draw(gallery, index, side_px).mask


def seen_mask(mask: np.ndarray, kind: PairKind, seed: int) -> np.ndarray:
    """Where picture A of a known pair shows what the mask of its picture marks."""
    as_picture = Image.fromarray(255 * np.repeat(mask[..., None], 3, 2).astype(np.uint8))
    return np.asarray(known_pair(as_picture, kind, seed).a)[..., 0] > 127


def on_mask(mask: np.ndarray, frame: Frame) -> np.ndarray:
    """bool [N]: patches whose centre lies on it."""
    return np.array([mask[round(y), round(x)] for x, y in centres(frame)])


# All of them


def rounds(name: str, images: Images, model: Model, setting: Setting) -> Iterator[tuple[int, int, int, Model]]:
    """(draw, place in it, image id, untrained model); tells how far it is."""
    count = min(setting.pictures, len(images))
    for turn in range(setting.draws):
        start = untrained(model, turn)
        for place, image_id in enumerate(np.random.default_rng(turn).permutation(len(images))[:count].tolist()):
            print(f"{name}: draw {turn + 1}/{setting.draws}, picture {place + 1}/{count}", file=sys.stderr)
            yield turn, place, image_id, start


def compare_views(name: str, images: Images, model: Model, setting: Setting, size: int) -> Found:
    shape = setting.draws, len(KINDS), min(setting.pictures, len(images)), len(METRICS)
    found: Found = defaultdict(lambda: np.full(shape, np.nan))
    for turn, place, image_id, start in rounds(name, images, model, setting):
        picture, uri, seed = images.read(image_id), images.uris[image_id], turn * len(images) + image_id
        picture.thumbnail((2 * size, 2 * size))  # half of it is enough, once cut
        for k, kind in enumerate(KINDS):
            known = known_pair(picture, kind, seed)
            if setting.recolour:
                known = replace(known, b=recoloured(known.b, seed))
            predicted = list(by_features(model, start, known.a, known.b, size))
            predicted.append(by_true_place(known.homography, predicted[-1][2]))
            subsets: dict[str, np.ndarray | None] = {name: None}
            if uri.startswith("drawn:"):
                subsets[f"{name}, on the object"] = seen_mask(mask_of(uri, picture.width), kind, seed)
            for subset, mask in subsets.items():
                for row, metrics in scores(predicted, known, mask):
                    found[subset, row][turn, k, place] = metrics
    return found


def scores(predicted: list[Prediction], known: KnownPair, mask: np.ndarray | None) -> Iterator[tuple[str, list[float]]]:
    """(row, METRICS) of one pair; nothing where no patch on the mask is seen in both."""
    for row, patches, frames in predicted:
        geometry, of = (*frames, known.homography), None if mask is None else on_mask(mask, frames[0])
        if of is None or (true_patches(*geometry)[of] >= 0).any():
            result = instance_accuracy(patches, *geometry, radii=RADII, of=of)
            yield row, [result.metrics[metric] for metric in METRICS]
            if row == TRUE:
                yield CHANCE, [*chance_accuracy(*geometry, RADII, of=of).values(), 100]


def compare_classmates(name: str, images: Images, model: Model, setting: Setting, size: int) -> dict[str, np.ndarray]:
    """Row -> per cent [draws, pictures, 2]: patches of the object that find the object, of the ground the ground."""
    found: dict[str, np.ndarray] = defaultdict(
        lambda: np.full((setting.draws, min(setting.pictures, len(images)), 2), np.nan)
    )
    for turn, place, image_id, start in rounds(name, images, model, setting):
        mates = [i for i in range(len(images)) if i != image_id and images.label(i) == images.label(image_id)]
        if not mates:
            raise DataError(f"{images.spec} has a class of one picture; give at least 16 drawn pictures.")
        ids = image_id, mates[(place + turn) % len(mates)]
        a, b = (images.read(i) for i in ids)
        mask_a, mask_b = (mask_of(images.uris[i], picture.width) for i, picture in zip(ids, (a, b), strict=True))
        for row, patches, frames in by_features(model, start, a, b, size):
            on_a, on_b = on_mask(mask_a, frames[0])[patches[:, 0]], on_mask(mask_b, frames[1])[patches[:, 1]]
            if on_a.any() and not on_a.all():
                found[row][turn, place] = 100 * on_b[on_a].mean(), 100 * (~on_b[~on_a]).mean()
    return found


# What is printed


def means(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean over pictures, which are along `axis`; and behind the means along the next-to-last axis, theirs."""
    by_picture = np.nanmean(values, axis=axis)
    return np.concatenate([by_picture, by_picture.mean(1, keepdims=True)], 1)


def words(draws: np.ndarray) -> str:
    """Mean and spread over draws [draws]."""
    return f"{draws.mean():.1f} ±{draws.std(ddof=min(1, len(draws) - 1)):.1f}"


def table(title: str, columns: list[str], rows: dict[str, list[np.ndarray]], default: str) -> str:
    """Markdown, a cell for each array [draws]."""
    lines = [f"| {title} | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for row, cells in rows.items():
        label = f"{row} (default)" if row == default else row
        lines.append(f"| {label} | " + " | ".join(map(words, cells)) + " |" + " |" * (len(columns) - len(cells)))
    return "\n".join(lines)


def verdict(label: str, scores: dict[str, np.ndarray], entries: list[str], default: str) -> str:
    """Which entry is best by its score [draws], by how much, and where the default stands."""
    best, second = sorted(entries, key=lambda row: -scores[row].mean())[:2]
    gain = lambda row: words(scores[row] - scores[f"start {row}"])
    return (
        f"{label}: best {best} with {words(scores[best])}, {words(scores[best] - scores[second])} above {second}, "
        f"{gain(best)} above its own start; the default {default} has {words(scores[default])}, "
        f"{gain(default)} above its own start"
    )


def main(setting: Setting) -> None:
    torch.set_num_threads(1)  # the products are small: several threads mostly wait for each other
    model = open_model(setting.model)
    size = setting.size or first_size(model.card)
    photographs = open_images(setting.photos) if setting.photos else installed_photographs()
    sources = {"photographs": photographs, "drawn pictures": open_images(setting.drawn)}
    entries, default = list(entries_of(model)), default_of(model)
    print(f"{setting}, {size} px in patches of {model.card['patch_px']} ({machine()})")

    views: dict[tuple[str, str], np.ndarray] = {}  # [draws, kinds and their mean, METRICS]
    for name, images in sources.items():
        found = compare_views(name, images, model, setting, size)
        views |= {key: means(values, axis=2) for key, values in found.items()}
    subsets = list(dict.fromkeys(subset for subset, _ in views))
    columns = [f"{kind} @{radius}" for kind in (*KINDS, "all", "start, all") for radius in RADII]
    for subset in subsets:
        rows = {}
        for row in (*entries, PLACELESS, MUTUAL, CHANCE, SAME, TRUE):
            own = views[subset, row]
            rows[row] = [own[:, kind, radius] for kind in range(len(KINDS) + 1) for radius in RADII]
            rows[row] += [views[subset, f"start {row}"][:, -1, radius] for radius in RADII] if row in entries else []
        print("", table(subset, columns, rows, default), sep="\n")
        print(f"\nMutual matches cover {words(views[subset, MUTUAL][:, -1, -1])} % of the patches.")

    name = "drawn pictures of one class"
    found = compare_classmates(name, sources["drawn pictures"], model, setting, size)
    mates = {row: means(values, axis=1) for row, values in found.items()}  # [draws, object, ground and their mean]
    rows = {
        row: [*mates[row].T] + ([mates[f"start {row}"][:, 2]] if row in entries else [])
        for row in (*entries, PLACELESS, MUTUAL, SAME)
    }
    print("", table(name, ["object", "ground", "both", "start, both"], rows, default), "", sep="\n")

    contests = {
        f"{subset} @{radius}": {row: values[:, -1, radius] for (of, row), values in views.items() if of == subset}
        for subset in subsets
        for radius in RADII
    }
    for radius in RADII:
        both = [contests[f"{source} @{radius}"] for source in sources]
        contests[f"all pictures @{radius}"] = {row: np.mean([one[row] for one in both], axis=0) for row in both[0]}
    contests[name] = {row: values[:, 2] for row, values in mates.items()}
    for label, contest in contests.items():
        print(verdict(label, contest, entries, default))


if __name__ == "__main__":
    main(tyro.cli(Setting, description=__doc__))
