"""The verbs `search` and `gallery`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from analysis.terminal import PICTURES, Job, Source, check_out, print_json, workbench_of, writing
from memssl_core.errors import ModelError

if TYPE_CHECKING:
    import numpy as np

    from analysis.neighbours import Space
    from analysis.search import Searched, Walk

Pictures = Annotated[tuple[str, ...], tyro.conf.arg(metavar="IMG...")]
Embed = Callable[[str], "np.ndarray"]


def search(
    images: tyro.conf.Positional[Pictures],
    gallery: str | None = None,
    space: Literal["memory", "embedding"] = "memory",
    k: int = 20,
    mean: bool = False,
    less: Pictures = (),
    weight: float = 0.5,
    walk: int | None = None,
    class_name: str | None = None,
    path: str | None = None,
    fold: float | None = None,
    exact: bool = False,
    model: Source | None = None,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """The pictures of a gallery, or the memories of a model, that are most like each of some pictures.

    Args:
        images: picture files; each is a query of its own
        gallery: the name of a gallery; the model's memory if left out
        space: in the memory: memory compares projections, as the loss does; embedding the backbone's output
        k: how many for each query
        mean: one query between all pictures
        less: pictures that the results should be unlike
        weight: how much they count, 0 to 10
        walk: so many steps from the first picture to the second, and what lies nearest to each
        class_name: only results of this class
        path: only results whose path holds these words
        fold: of results with this cosine or more to each other show the first; 0.98 are near-duplicates
        exact: compare every row, also of a gallery that has an index
        model: any model source; left out, the gallery's own or embedded
        out: results with their pictures as .png, .jpg or .webp, a table as .csv, or both in a .zip
        json: print a list for a program, one entry a query
    """
    from analysis.search import walk as walk_between

    check_out(out, (*PICTURES, ".csv", ".zip"))
    searched, embed, model_of = _searched(gallery, space, model)
    queries = _queries(images, embed, mean=mean, less=less, weight=weight)
    filters: Any = {"class_name": class_name, "path": path}
    if walk is not None:
        if len(queries) != 2:
            raise ModelError("A walk leads from one picture to another; name two.")
        way = walk_between(searched, queries[0][1], queries[1][1], walk, **filters)
        found = [{"query": f"{queries[0][0]} to {queries[1][0]}", "found": _steps(searched, way)}]
    else:
        alone = not (mean or less)
        found = [_found(searched, *query, k, fold, alone=alone, exact=exact, **filters) for query in queries]
    if out:
        _write(out, images, found, searched)
    if json:
        return print_json(found)
    from memssl_core.data.images import printable

    for one in found:
        how = "exact" if one.get("recall") is None else f"recall@10 about {one['recall']:.3f}"
        print(f"{printable(one['query'])}: {len(one['found'])} of {model_of}, {how}")
        print("score        id  class       picture")
        for row in one["found"]:
            alike = f"  and {row['alike']} nearly the same" if row.get("alike") else ""
            name = printable(f"{row['class_name'] or '':<10}  {row['uri'] or ''}")
            print(f"{row['score']:5.3f} {row['id']:9d}  {name}{alike}")


def gallery(
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")],
    data: str | None = None,
    model: Source | None = None,
    again: bool = False,
    need: bool = False,
    delete: bool = False,
    device: str = "auto",
    json: bool = False,
    job: Job = None,
) -> None:
    """Embed pictures of one's own into a gallery to be searched, or bring a gallery up to date with them.

    Only what is new or changed is embedded; the same command goes on where it was stopped or killed.

    Args:
        name: letters, digits, '.', '-', '_'
        data: a folder, a .zip, or another data source; left out, the one the gallery was made of
        model: any model source; left out, the gallery's own or embedded
        again: embed everything anew, also by another model
        need: only say what it would take
        delete: remove the gallery; the pictures stay where they are
        device: auto, cpu, cuda or mps
        json: print facts for a program
        job: a folder to tell others in how far it is
    """
    from analysis.gallery import delete_gallery, gallery_folder, newest_claim, read_gallery
    from memssl_core.cli import StopOnSignal
    from memssl_core.jobs import working, write_atomically
    from memssl_core.sources import fetch, open_model
    from memssl_core.terminal import progress

    if delete:
        delete_gallery(name)
        return print_json({"deleted": name}) if json else print(f"deleted gallery {name}")
    folder = gallery_folder(name)
    told = read_gallery(folder) or newest_claim(folder) or {}
    facts: dict[str, Any] | None = None
    source, stop = model or told.get("model") or "embedded", StopOnSignal("Stopping…")
    with progress() as listen, working(job, resource="model", listen=listen, asked_to_stop=stop) as work:
        from analysis.update import encoder_of, update_gallery
        from analysis.update import need as need_of
        from memssl_core.device import choose_device

        fetch(source, emit=work.emit, should_stop=work.should_stop)
        encoder = encoder_of(open_model(source), choose_device(device).type)
        if need:
            facts = asdict(need_of(name, data, encoder, again=again))
            if job:
                write_atomically(job / "result.json", dumps(facts).encode())
        else:
            asked: Any = {"again": again, "emit": work.emit, "should_stop": work.should_stop}
            made = update_gallery(name, data, encoder, **asked)
            facts = made.facts if made else None
        if facts:
            work.finish(name)
    if facts is None:
        return print(f"Stopped. The same command goes on with gallery {name}.", file=sys.stderr)
    if json:
        return print_json(facts)
    for line in _need_lines(facts) if need else _gallery_lines(facts):
        print(line)


def _searched(gallery: str | None, space: Space, model: str | None) -> tuple[Searched, Embed, str]:
    """What is searched, what makes queries for it, and what it is called."""
    from analysis.gallery import open_gallery
    from analysis.search import memory_rows

    if gallery is None:
        workbench = workbench_of(model or "embedded")
        in_memory = space == "memory" and workbench.model.head is not None
        embed = workbench.projection if in_memory else workbench.embedding
        return memory_rows(workbench, space), embed, f"the memory, {'memory' if in_memory else 'embedding'} space"
    opened = open_gallery(gallery)
    workbench = workbench_of(model or opened.facts["model"])
    opened.require(workbench.model.model_hash, asdict(workbench.model.transform))
    return opened, workbench.embedding, f"gallery {gallery}"


def _queries(
    images: Sequence[str], embed: Embed, *, mean: bool, less: Sequence[str], weight: float
) -> list[tuple[str, np.ndarray]]:
    """Names and vectors of what is asked."""
    from analysis.search import less_like, mean_of

    if not images:
        raise ModelError("Name at least one picture to search with.")
    queries = [(image, embed(image)) for image in images]
    if mean:
        queries = [(" + ".join(images), mean_of([vector for _, vector in queries]))]
    others = [embed(image) for image in less]
    return [(name, less_like(vector, others, weight)) for name, vector in queries]


def _found(
    searched: Searched, name: str, query: np.ndarray, k: int, fold: float | None, *, alone: bool, **asked: Any
) -> dict[str, Any]:
    from analysis.gallery import Gallery
    from analysis.search import groups
    from analysis.search import search as find
    from memssl_core.data.images import read_file

    itself = searched.row_of(read_file(Path(name))) if alone and isinstance(searched, Gallery) else None
    found = find(searched, query, k, itself=itself, **asked)
    records = found.records(searched)
    if fold is not None:
        alike = groups(searched.vectors[found.rows], fold)
        records = [{**records[group[0]], "alike": len(group) - 1} for group in alike]
    return {"query": name, "exact": found.exact, "recall": found.recall, "time_s": found.time_s, "found": records}


def _steps(searched: Searched, way: Walk) -> list[dict[str, Any]]:
    described = zip(way.angles.tolist(), way.scores.tolist(), searched.describe(way.rows), strict=True)
    return [
        {"rank": step, "angle": round(angle, 5), "score": round(score, 6), **row}
        for step, (angle, score, row) in enumerate(described, 1)
    ]


def _write(out: Path, images: Sequence[str], found: list[dict[str, Any]], searched: Searched) -> None:
    from analysis.draw import results_sheet
    from analysis.exports import found_csv, found_zip
    from memssl_core.data.images import decode_image

    records = [{"query": one["query"], **row} for one in found for row in one["found"]]
    if out.suffix.lower() in (".csv", ".zip"):
        zipped = out.suffix.lower() == ".zip"
        data = found_zip(records, lambda row: searched.thumbnail(row["id"])) if zipped else found_csv(records)
        with writing(out):
            out.write_bytes(data)
        return
    asked = [decode_image(image) for image in images]
    pictures = [asked] if len(found) == 1 else [[one] for one in asked]
    rows = [
        (queries, [(f"{row['score']:.3f}", searched.thumbnail(row["id"])) for row in one["found"]])
        for queries, one in zip(pictures, found, strict=True)
    ]
    with writing(out):
        results_sheet(rows).save(out)


def _need_lines(facts: dict[str, Any]) -> list[str]:
    gb = {name: f"{facts[name] / 1e9:.2f} GB" for name in facts if name.endswith("_bytes")}
    return [
        f"{facts['pictures']} pictures: {facts['new']} to embed, {facts['moved']} moved, {facts['gone']} gone, "
        f"{facts['skipped']} that will be skipped",
        f"some {facts['seconds']:.0f} s, {gb['ram_bytes']} of memory ({gb['ram_free_bytes']} free), "
        f"{gb['disk_bytes']} of disk ({gb['disk_free_bytes']} free)",
        *facts["problems"],
    ]


def _gallery_lines(facts: dict[str, Any]) -> list[str]:
    return [
        f"gallery {facts['name']}: {facts['pictures']} files, {facts['rows']} different pictures, "
        f"{facts['skipped']} skipped, {facts['bytes'] / 1e6:.1f} MB",
        f"search it with: python -m analysis search IMG --gallery {facts['name']}",
    ]
