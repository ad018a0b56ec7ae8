"""The verb `compare`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from analysis.terminal import PICTURES, Picture, Source, check_out, print_json, workbench_of, write_csv, writing
from memssl_core.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from analysis.attention import Query
    from analysis.compare import Judged, Look, MemoryOverlap
    from analysis.workbench import Workbench
    from memssl_core.data.images import Frame

Head = Literal["mean", "max"] | int
SHOWN = 10  # pictures that changed most, for people
FLAT = 2  # times uniform: a map whose patches weigh alike is not to look strong


def compare(
    image: Picture,
    other: Source,
    model: Source = "embedded",
    query: str = "cls",
    layer: int = -1,
    head: Head = "mean",
    size: int | None = None,
    other_layer: int | None = None,
    other_head: Head | None = None,
    other_size: int | None = None,
    k: int = 20,
    probe: Annotated[str | None, tyro.conf.arg(metavar="SPEC")] = None,
    pictures: int | None = None,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Two models on the same picture: where they look and which memories they answer with; over many pictures, how
    alike they see them.

    Args:
        image: a picture file
        other: the model to compare with: any model source, for example run:NAME@STEP
        model: any model source
        query: as for `attention`; a patch index is one of the first model's, and its place is asked of the other
        layer: transformer block, 0-based; negatives count from the last
        head: mean or max over the attention heads, or one of them, 0-based
        size: long side in pixels at which the model reads the picture; as it is if left out
        other_layer: the other model's, if it is not to be the same
        other_head: the other model's, if it is not to be the same
        other_size: the other model's, if it is not to be the same
        k: how many remembered pictures of each
        probe: also compare over many pictures: drawn, memory (the first model's thumbnails), or a data source
        pictures: how many of them; left out, 256 drawn ones or thumbnails, or all of a data source
        out: both attention maps side by side as .png, .jpg or .webp; or a table of the probe's pictures, most changed
            first, as .csv
        json: print figures for a program
    """
    from analysis.attention import parse_query
    from analysis.compare import Look, compare_memories

    check_out(out, (*PICTURES, ".csv"))
    is_table = out is not None and out.suffix.lower() == ".csv"
    if probe is None and (is_table or pictures is not None):
        raise ModelError("A table, or a number of pictures, needs pictures to compare over; add --probe drawn.")
    a, b = workbench_of(model), workbench_of(other)
    look = Look(layer, head, size)
    its = {"layer": other_layer, "head": other_head, "size": other_size}
    other_look = replace(look, **{name: value for name, value in its.items() if value is not None})
    overlap, why_no_maps, draw = _maps(a, b, image, parse_query(query), look, other_look)
    memories = compare_memories(a, b, image, k)
    judged, names = _probed(a, b, probe, pictures) if probe is not None else (None, [])
    if out and is_table and judged:
        write_csv(out, ("rank", "picture", "kept", "neighbours_a", "neighbours_b"), _table(judged, names))
    elif out:
        if draw is None:
            raise ModelError(f"There are no two maps to draw. {why_no_maps}")
        with writing(out):
            draw().save(out)
    if json:
        return print_json(
            {
                "models": [a.model.name, b.model.name],
                "maps": {"overlap": overlap, "query": query, "words": why_no_maps}
                | {name: asdict(one) for name, one in (("a", look), ("b", other_look))},
                "memories": memories.summary(),
                "probe": judged.summary(names) if judged else None,
            }
        )
    print(f"A {a.model.name}\nB {b.model.name}")
    maps = why_no_maps or f"overlap {overlap:.3f} of A {_told(look)} and B {_told(other_look)}, query {query}"
    print(f"attention: {maps}")
    print(f"memories nearest to the picture: {memories.words or _shared(memories)}")
    if judged:
        for line in _judged_lines(judged, names):
            print(line)


def _maps(
    a: Workbench, b: Workbench, image: str, query: Query, look: Look, other: Look
) -> tuple[float | None, str | None, Callable[[], Image.Image] | None]:
    """The overlap of two attention maps, and what draws both; else a sentence that says why there are no two."""
    from analysis.compare import compare_maps, same_place
    from memssl_core.data.images import decode_image

    if any(workbench.model.card["why_no_attention"] for workbench in (a, b)):
        reasons = {each.model.name: each.model.card["why_no_attention"] for each in (a, b)}
        return None, " ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason), None
    picture = decode_image(image)
    map_a, map_b, overlap = compare_maps(a, b, picture, query, look, other)

    def draw() -> Image.Image:
        frames = [each.pixels(picture, one.size)[1] for each, one in ((a, look), (b, other))]
        asked = [_patches(query, frames[0]), _patches(same_place(query, frames[0]), frames[1])]
        return _side_by_side(picture, [map_a, map_b], asked)

    return overlap, None, draw


def _patches(query: Query, frame: Frame) -> list[int]:
    """The patches among what is asked; tokens without a place are left out."""
    parts: Any = query if isinstance(query, list) else [query]
    found = [frame.patch_at(*part) if isinstance(part, tuple) else part for part in parts]
    return [part for part in found if isinstance(part, int)]


def _told(look: Look) -> str:
    block = "last block" if look.layer == -1 else f"block {look.layer}"
    return f"{block} {look.head if isinstance(look.head, str) else f'attention head {look.head}'}"


def _side_by_side(picture: Image.Image, maps: list[np.ndarray], asked: list[list[int]]) -> Image.Image:
    """Both maps on the same scale of times uniform."""
    from PIL import Image

    from analysis.draw import attention_map, high

    top = max(FLAT, *(high(weights) * weights.size for weights in maps))
    drawn = [
        attention_map(picture, weights, top / weights.size, asked=patches)
        for weights, patches in zip(maps, asked, strict=True)
    ]
    width, height = drawn[0].size
    step = width + round(width / 32)
    sheet = Image.new("RGB", (step + width, height), "white")
    for at, one in enumerate(drawn):
        sheet.paste(one, (at * step, 0))
    return sheet


def _probed(a: Workbench, b: Workbench, spec: str, count: int | None) -> tuple[Judged, list[str]]:
    from analysis.compare import compare_probe
    from analysis.probe import probe, probe_images
    from memssl_core.data.images import printable
    from memssl_core.terminal import progress

    images = probe_images(spec, count, memory=a.model.memory)
    with progress() as listen:
        (one, other), kept = probe([a, b], images, emit=listen)
    return compare_probe(one, other), [printable(images.uris[at]) for at in kept]


def _shared(found: MemoryOverlap) -> str:
    most = max(len(found.rows_a), len(found.rows_b))
    return f"{found.shared} of {most} are shared (chance {found.chance:.1%}); {found.common} pictures are in both"


def _judged_lines(judged: Judged, names: list[str]) -> list[str]:
    lines = [
        f"over {judged.n} pictures: debiased CKA {judged.cka:.3f}, "
        f"mutual {judged.k}-NN {judged.mutual_knn:.3f} (chance {judged.chance:.3f})",
        f"neighbours kept, the {min(SHOWN, judged.n)} pictures that changed most:",
    ]
    return lines + [f"{judged.kept[at]:5.0%}  {names[at]}" for at in judged.order[:SHOWN]]


def _table(judged: Judged, names: list[str]) -> list[list[object]]:
    near = judged.neighbours_a, judged.neighbours_b
    return [
        [rank, names[at], round(float(judged.kept[at]), 6), *("; ".join(names[i] for i in side[at]) for side in near)]
        for rank, at in enumerate(judged.order.tolist(), 1)
    ]
