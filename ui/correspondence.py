"""Tab *Correspondence*: two pictures in, the features of their patches and the matches between them out."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from memssl_core.data.images import Frame, decode_image
from memssl_core.data.pairs import known_pair
from memssl_core.errors import ModelError
from ui import wire
from ui.attention import NO_SIZE
from ui.context import EVENT, Context, Visit, device_words, handler
from ui.facts import input_sizes
from ui.memory import tile
from ui.store import Two, key_of
from ui.views import view

if TYPE_CHECKING:
    from analysis import Workbench
    from analysis.matches import Matches, Pair

CHECKS = {  # the two pictures of a check, in words
    "crops": ("first crop", "second crop"),
    "homography": ("whole", "tilted"),
    "mirror": ("whole", "mirrored"),
}
MAX_SEED = 9999
CROP_SHARE = 0.4  # of the short side: about what a training view keeps of a picture
REMEMBERED = 8


def correspondence_tab(context: Context, visit: gr.State) -> None:
    pairs = view("correspondence", events=["asked", "remembered"], elem_id="correspondence")
    pairs.asked(handler(context, show), visit, pairs, **EVENT)
    pairs.remembered(handler(context, remember), visit, pairs, **EVENT)


def show(context: Context, visit: Visit, asked: dict) -> dict[str, Any]:
    """`asked` {model, a, b, check, seed, facet, layer, position, size} -> {key} of the bytes at `api/matches/KEY`.

    `check` None, or one of CHECKS: the pictures are then made from a, and what is right is known.
    """
    handle, workbench = context.model_of(asked)
    pictures = pictures_of(context, visit, asked)
    facet, layer, position, size = (asked.get(name) for name in ("facet", "layer", "position", "size"))
    card = workbench.model.card
    if facet not in card["facets"] or type(layer) is not int or not 0 <= layer < card["layers"]:
        raise ModelError("This model has no such features; choose others from the list.")
    if size not in input_sizes(card):
        raise ModelError(NO_SIZE)
    key = key_of("matches", handle, pictures.a.handle, pictures.b.handle, facet, layer, bool(position), size)
    if context.results.get(key) is None:
        with context.turns.take("model"):
            start = time.perf_counter()
            pair = workbench.pair(pictures.a.data, pictures.b.data, facet, layer, size, position=bool(position))
            arrays, known = answers(workbench, pictures, pair, size)
            time_s = time.perf_counter() - start
        facts = {
            "frame_a": asdict(pair.frame_a),
            "frame_b": asdict(pair.frame_b),
            "pictures": [pictures.a.facts(), pictures.b.facts()],
            "facet": facet,
            "layer": layer,
            "position": bool(position),
            "size": size,
            "known": known,
            "time_s": round(time_s, 4),
            "device": device_words(workbench),
        }
        context.results.put(key, wire.pack(arrays, facts))
    return {"key": key}


def pictures_of(context: Context, visit: Visit, asked: dict) -> Two:
    """The pictures that a question names, or the two that its check makes of the first."""
    a = context.pictures.of_visit(str(asked.get("a")), visit)
    check: Any = asked.get("check")
    seed = asked.get("seed")
    if check is None:
        return Two(a, context.pictures.of_visit(str(asked.get("b")), visit))
    if str(check) not in CHECKS or type(seed) is not int or not 0 <= seed <= MAX_SEED:
        raise ModelError(f"This check is not offered; choose one from the page, with a draw from 0 to {MAX_SEED}.")
    with context.turns.take("decode"):
        return context.pictures.made(a, f"{check} {seed}", lambda image: known_pair(image, check, seed), CHECKS[check])


def answers(
    workbench: Workbench, pictures: Two, pair: Pair, size: int
) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """Arrays for the page, and of a check how much was right.

    `a`, `b` unit features float16 [N, C]; by rule the matches int32 [M, 2] and their cosines; `front_a` and `front_b`
    uint8 [2, N] the foreground by attention (where there is one, else everything) and by the first component.
    """
    arrays: dict[str, np.ndarray] = {
        side: unit(rows).astype(np.float16) for side, rows in (("a", pair.a), ("b", pair.b))
    }
    found = {"mutual": pair.match("mutual"), "argmax": pair.match("argmax")}
    for rule, matches in found.items():
        arrays |= {rule: matches.patches.astype(np.int32), f"{rule}_scores": matches.scores}
    by_attention = [np.ones(len(rows), bool) for rows in (pair.a, pair.b)]
    if not workbench.model.card["why_no_attention"]:
        by_attention = [workbench.foreground(picture.data, size) for picture in (pictures.a, pictures.b)]
    by_component = pair.foreground_by_pca()
    for i, side in enumerate("ab"):
        arrays[f"front_{side}"] = np.stack([by_attention[i], by_component[i]]).astype(np.uint8)
    if pictures.homography is None:
        return arrays, None
    from memssl_core.evaluation.correspondence import true_patches

    found["nearest"] = replace(pair, a=unit(pair.a), b=unit(pair.b)).match("argmax")
    true = true_patches(pair.frame_a, pair.frame_b, pictures.homography).astype(np.int32)
    return arrays | {"true": true}, known_facts(found, pair, pictures.homography, int((true >= 0).sum()))


def known_facts(found: dict[str, Matches], pair: Pair, homography: np.ndarray, n_valid: int) -> dict[str, Any]:
    """Per cent right at radius 0, 1, 2 patches: of each of the matches found, by name, and of chance."""
    from analysis.matches import known_accuracy
    from memssl_core.evaluation.correspondence import chance_accuracy

    told: dict[str, Any] = {name: known_accuracy(matches, homography) for name, matches in found.items()}
    return told | {"chance": chance_accuracy(pair.frame_a, pair.frame_b, homography), "n_valid": n_valid}


def remember(context: Context, visit: Visit, asked: dict) -> dict[str, Any]:
    """`asked` {model, a, b, check, seed, side, patch, layer, size} -> {rows, box, space}: the memories nearest to the
    crop around a patch of the layer's grid. `box` is that crop, x0, y0, x1, y1 in 0..1 of its picture."""
    handle, workbench = context.model_of(asked)
    pictures, card = pictures_of(context, visit, asked), workbench.model.card
    side, patch, layer, size = (asked.get(name) for name in ("side", "patch", "layer", "size"))
    if type(patch) is not int or type(layer) is not int or not 0 <= layer < card["layers"]:
        raise ModelError("This patch is not on the picture; click one.")
    if side not in ("a", "b") or size not in input_sizes(card):
        raise ModelError("This patch is not on the picture; click one.")
    picture = pictures.a if side == "a" else pictures.b
    with context.turns.take("model"):
        frame = workbench.features(picture.data, size, layer=layer)[1]
        if not 0 <= patch < frame.rows * frame.columns:
            raise ModelError("This patch is not on the picture; click one.")
        box = crop_around(frame, patch)
        crop = decode_image(picture.data).crop(box)
        space = "memory" if card["projection_width"] else "embedding"
        found = workbench.neighbours(crop, space=space, k=REMEMBERED, key=key_of("crop", picture.handle, box))
    rows = [tile(handle, row, score) for row, score in zip(found.rows, found.scores.tolist(), strict=True)]
    sides = (picture.width, picture.height) * 2
    return {"rows": rows, "box": [edge / side for edge, side in zip(box, sides, strict=True)], "space": found.space}


def crop_around(frame: Frame, patch: int) -> tuple[int, int, int, int]:
    """The square of the picture, whole px, with the patch in its middle, or as near as the edges allow."""
    short = min(frame.width, frame.height)
    side = min(short, max(8, round(CROP_SHARE * short), round(3 * frame.patch_px / min(frame.scale_x, frame.scale_y))))
    x, y = frame.centre_of(patch)
    left = round(min(max(0, x + 0.5 - side / 2), frame.width - side))
    top = round(min(max(0, y + 0.5 - side / 2), frame.height - side))
    return left, top, left + side, top + side


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
