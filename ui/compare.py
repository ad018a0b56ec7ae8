"""Tab *Compare*: two models on one picture, and over a set of pictures how far their embeddings agree."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gradio as gr
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from memssl_core.errors import MemsslError, ModelError
from ui.answers import cached, encode, gone
from ui.attention import NOT_OFFERED, maps
from ui.context import EVENT, Context, Visit, handler, told
from ui.facts import first_size
from ui.header import checkpoints
from ui.memory import tile
from ui.probes import DRAWN, offered_probes, probe_of
from ui.slots import shown_uri
from ui.store import key_of
from ui.views import view

if TYPE_CHECKING:
    from analysis import Workbench
    from analysis.probe import Probed
    from ui.probes import Probe

CHUNK, PART, CHUNK_S = 16, 4, 1.0  # pictures that are embedded in one turn: at most, at a time, and begun within s
MAX_K, NEIGHBOURS, CHANGED = 50, 10, 24
FEWEST = 16  # pictures to judge by
SMALL_PX = 128


def compare_tab(context: Context, visit: gr.State) -> None:
    both = view("compare", events=["asked"], elem_id="compare")
    both.asked(handler(context, show), visit, both, **EVENT)


def show(context: Context, visit: Visit, asked: dict) -> dict[str, Any]:
    """`asked` {ask: maps_a, maps_b, memories, probe or judge, …} -> what each of these tells."""
    offered: dict[str, Callable[[Context, Visit, dict], dict[str, Any]]] = {
        "maps_a": maps,
        "maps_b": maps,
        "memories": memories,
        "probe": probe,
        "judge": judge,
    }
    answer = offered.get(str(asked.get("ask")))
    if answer is None:
        raise ModelError(NOT_OFFERED)
    return answer(context, visit, asked)


def two(context: Context, asked: dict) -> tuple[tuple[str, str], tuple[Workbench, Workbench]]:
    """Handles and workbenches of `model` and `other`. ModelError if one of them is not open here."""
    (handle, workbench), other = context.model_of(asked), str(asked.get("other"))
    return (handle, other), (workbench, context.workbench(other))


def memories(context: Context, visit: Visit, asked: dict) -> dict[str, Any]:
    """`asked` {model, other, handle, k} -> the k nearest memories of both, and which pictures are among both.

    `words` is a sentence where that cannot be said.
    """
    handles, workbenches = two(context, asked)
    from analysis.compare import compare_memories  # which brings torch: not before the model is open

    picture = context.pictures.of_visit(str(asked.get("handle")), visit)
    k = asked.get("k")
    if type(k) is not int or not 1 <= k <= MAX_K:
        raise ModelError(f"Ask for 1 to {MAX_K} memories.")
    with context.turns.take("model"):
        found = compare_memories(*workbenches, picture.data, k)
    told = {}
    for side, handle in zip("ab", handles, strict=True):
        rows, scores, same = (getattr(found, f"{name}_{side}") for name in ("rows", "scores", "same"))
        pairs = zip(rows, scores.tolist(), same.tolist(), strict=True)
        told[f"rows_{side}"] = [tile(handle, row, score) | {"same": is_same} for row, score, is_same in pairs]
    return told | {
        "overlap": found.share,
        "shared": found.shared,
        "common": found.common,
        "chance": found.chance,
        "words": found.words,
    }


# Over a set of pictures


def probe(context: Context, visit: Visit, asked: dict) -> dict[str, Any]:
    """`asked` {model, probe, start} -> {done, total}: the next pictures of the set are embedded and kept.

    The page asks again with `start` as `done` was told, and not to ask on is to cancel. What is kept may have been
    dropped, or the server started again; `done` is then smaller, and the page goes on from there.
    """
    _, workbench = context.model_of(asked)
    pictures, start = probe_of(context, str(asked.get("probe"))), asked.get("start")
    if type(start) is not int or not 0 <= start <= pictures.count:
        raise ModelError(f"These are {pictures.count} pictures; begin at one of them.")
    done = embed_some(context, workbench, pictures, start)
    return {"done": done, "total": pictures.count}


def embed_some(context: Context, workbench: Workbench, pictures: Probe, start: int) -> int:
    """How many pictures of a set a model has embedded, after some more if it was at most `start`."""
    from analysis.probe import probe_features

    key = probed_key(workbench, pictures)
    with context.turns.take("model"):
        began = time.perf_counter()
        kept = context.probed.get(key) or ()
        done = sum(map(len, kept))
        if done > start:
            return done
        last = min(done + CHUNK, pictures.count)
        while done < last and time.perf_counter() - began < CHUNK_S:
            some = range(done, min(done + PART, last))
            kept = (*kept, probe_features(workbench, [pictures.picture(index) for index in some]))
            done = some.stop
        context.probed.put(key, kept)
        return done


def probed_key(workbench: Workbench, pictures: Probe) -> str:
    model = workbench.model
    return key_of("probed", model.model_hash, model.card["bundle_hash"], pictures.id)


def judge(context: Context, visit: Visit, asked: dict) -> dict[str, Any]:
    """`asked` {model, other, probe} -> how far two models agree on a set that both have embedded.

    `changed`: the pictures whose neighbours changed most, first, with their neighbours under both models.
    """
    _, workbenches = two(context, asked)
    pictures = probe_of(context, str(asked.get("probe")))
    return judged(context, workbenches, pictures, pictures.count)


def judged(context: Context, workbenches: tuple[Workbench, Workbench], pictures: Probe, count: int) -> dict[str, Any]:
    """Of the first `count` pictures of a set. ModelError if a model has not embedded them (any more)."""
    from analysis.compare import compare_probe
    from analysis.probe import join

    probed = [probed_key(workbench, pictures) for workbench in workbenches]
    key = key_of("judged", *probed, count)
    known = context.results.get(key)
    if known is None:
        kept = [context.probed.get(one) or () for one in probed]
        if any(sum(map(len, parts)) < count for parts in kept):
            raise ModelError("The pictures are not embedded here (any more); compare on them again.")
        with context.turns.take("judge"):
            found = compare_probe(*(first(join(parts), count) for parts in kept), k=NEIGHBOURS)
        known = json.dumps(found.summary(pictures.names, CHANGED), allow_nan=False).encode()
        context.results.put(key, known)
    return json.loads(known)


def first(probed: Probed, count: int) -> Probed:
    layers = None if probed.layers is None else probed.layers[:count]
    return replace(probed, embedding=probed.embedding[:count], layers=layers)


# For programs


def compared(
    context: Context, workbenches: tuple[Workbench, Workbench], data: bytes, k: int, count: int
) -> dict[str, Any]:
    """`memories` of both models about a picture, `maps`, the overlap of the attention of their last transformer blocks
    or the words that say why there is none, and `probe`, for a `count` above 0: over so many drawn pictures."""
    from analysis.compare import LAST_BLOCK, compare_maps, compare_memories

    drawn = probe_of(context, DRAWN)
    if count and not FEWEST <= count <= drawn.count:
        raise ModelError(f"pictures is {count}; ask for 0, or for {FEWEST} to {drawn.count}.")
    with context.turns.take("model"):
        memories = compare_memories(*workbenches, data, k).summary()
        try:
            looks = [replace(LAST_BLOCK, size=first_size(workbench.model.card)) for workbench in workbenches]
            maps = {"overlap": compare_maps(*workbenches, data, "cls", *looks)[2], "words": None}
        except ModelError as reason:
            maps = {"overlap": None, "words": str(reason)}
    for one in (*memories["a"], *memories["b"]):
        one["uri"] = shown_uri(one["uri"], context.public)
    if not count:
        return {"memories": memories, "maps": maps, "probe": None}
    for workbench in workbenches:
        done, before = embed_some(context, workbench, drawn, 0), 0
        while before < done < count:  # in turns, so that others may ask between two of them
            done, before = embed_some(context, workbench, drawn, done), done
    return {"memories": memories, "maps": maps, "probe": judged(context, workbenches, drawn, count)}


def add_compare_routes(api: APIRouter, context: Context) -> None:
    """`probes`, the sets there are for a model, their pictures, and `checkpoints`, which can be opened as models."""

    @api.get("/probes")
    def probes(model: str) -> Response:
        try:
            return JSONResponse([one.facts() for one in offered_probes(context, model)])
        except MemsslError as reason:
            return gone(str(reason), status=404)

    @api.get("/probe/{id}/{index}")
    def picture(request: Request, id: str, index: int) -> Response:
        try:
            found = probe_of(context, id)
            return cached(request, key_of("probe", id, index), lambda: encode(found.picture(index), SMALL_PX))
        except MemsslError as reason:
            return gone(str(reason), status=404)

    @api.get("/checkpoints")
    def stored() -> list[dict[str, str]]:
        return [{"source": told(context, source), "title": title} for source, title in checkpoints(context)]
