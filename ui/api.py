"""Named endpoints for programs (REST, gradio_client, MCP): the page's questions, by the parameter names of the design.

Gradio reads the return types of these functions from their signatures, so annotations stay unquoted here.
"""

import io
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import gradio as gr
import numpy as np
from gradio.data_classes import FileData
from gradio.utils import get_upload_folder
from pydantic import ValidationError, validate_call

from memssl_core.errors import ModelError
from memssl_core.jobs import write_atomically
from ui.beside import arrays_of
from ui.compare import compared
from ui.context import Context, told
from ui.header import checkpoints, offered
from ui.heads import table
from ui.messages import explain
from ui.search import records_like
from ui.slots import points_table
from ui.tray import uploaded

MAX_K = 1000
MAX_QUERIES = 64


def add_endpoints(context: Context) -> None:
    """The named endpoints, inside the page's Blocks: `attention`, `heads`, `pca`, `compare`, `match`, `neighbours`,
    `search`, `map_points` and `model_card`."""

    def attention(
        image: FileData,
        model: str | None = None,
        layer: int = -1,
        query: str = "cls",
        size: int | None = None,
        start: int | None = None,
    ) -> tuple[FileData, dict[str, Any]]:
        """Where a token of a picture reads: attention rows of one transformer block of a vision model.

        Args:
            image: the picture to look at.
            model: a model that this server has open; left out, the one its page opens with.
            layer: transformer block, 0-based; negatives count from the last.
            query: cls, mean, register:I, a patch index, x,y in pixels, or several of these joined by ;
            size: long side in pixels at which the model reads the picture; as it is if left out.
            start: also the attention rollout of one query, from this transformer block on, 0-based.
        Returns:
            An npz file (rows, norms of the patches, grid, n_prefix; rollout: of every transformer block) and a summary.
        """
        if query.count(";") >= MAX_QUERIES:
            raise ModelError(f"{query.count(';') + 1} queries were asked for; ask for at most {MAX_QUERIES} at a time.")
        workbench, picture = named(context, model), opened(image)
        with context.turns.take("model"):
            found = workbench.attention(picture, layer=layer, query=query, size=size)
            arrays = {"rows": found.rows, "norms": found.norms, "grid": found.grid, "n_prefix": found.n_prefix}
            if start is not None:
                arrays["rollout"] = workbench.rollout(picture, query, size, start=start).rows
        return saved("attention.npz", lambda: npz_bytes(**arrays)), found.summary()

    def heads(image: FileData, model: str | None = None, top: int = 20) -> dict[str, Any]:
        """Which attention heads of a vision model matter for a picture: what silencing each one of them does.

        Args:
            image: the picture to look at.
            model: a model that this server has open; left out, the one its page opens with.
            top: of how many strongest memories to count how many stay.
        Returns:
            Of each transformer block and attention head: kl, nats, of the distribution over the memory; kept, the
            share of the top memories that stay; moved, 1 - cosine of the embedding.
        """
        if not 1 <= top <= MAX_K:
            raise ModelError(f"top is {top}; ask for 1 to {MAX_K} memories.")
        return table(context, named(context, model), opened(image), top)

    def pca(
        image: FileData,
        image_b: FileData | None = None,
        model: str | None = None,
        facet: Literal["token", "key", "query", "value"] = "token",
        layer: int = -1,
        size: int | None = None,
        foreground: bool = False,
    ) -> tuple[FileData, FileData]:
        """The patches of one picture, or of two together, coloured by the principal components of their features.

        Args:
            image: the picture to look at.
            image_b: a second one, which shares components and colours.
            model: a model that this server has open; left out, the one its page opens with.
            facet: token, key, query or value.
            layer: transformer block or stage, 0-based; negatives count from the last.
            size: long side in pixels at which the model reads each picture; as it is if left out.
            foreground: only the foreground, as the first component finds it.
        Returns:
            A PNG file, and an npz file (components, colours, front and grid of each picture, explained).
        """
        workbench = named(context, model)
        from analysis import draw  # which brings torch: not before the model is open

        pictures = [opened(one) for one in (image, image_b) if one]
        with context.turns.take("model"):
            found = workbench.pca(*pictures, facet=facet, layer=layer, size=size, foreground=foreground)
        sheet = io.BytesIO()
        draw.pca_sheet(found, pictures).save(sheet, "PNG")
        sides = "ab"[: len(pictures)]
        grids = {f"grid_{side}": getattr(found, f"front_{side}").shape for side in sides}
        arrays = {**arrays_of(found, sides), **grids, "explained": found.explained}
        return saved("pca.png", sheet.getvalue), saved("pca.npz", lambda: npz_bytes(**arrays))

    def compare(
        image: FileData, other: str, model: str | None = None, k: int = 20, pictures: int = 0
    ) -> dict[str, Any]:
        """How far two vision models agree about a picture, and over a set of drawn pictures.

        Args:
            image: the picture to look at.
            other: the second model, one that this server has open.
            model: the first; left out, the one its page opens with.
            k: how many memories of each to compare.
            pictures: over how many drawn pictures to compare what both embed, at most 256; 0 for none.
        Returns:
            memories: those nearest to the picture, and which both answer with; maps: the overlap of the attention of
            the last transformer blocks; probe: debiased CKA, mutual k-NN beside chance, and the pictures whose
            neighbours changed most, first. Where a comparison cannot be made, words say why.
        """
        if not 1 <= k <= MAX_K:
            raise ModelError(f"k is {k}; ask for 1 to {MAX_K} memories.")
        return compared(context, (named(context, model), named(context, other)), opened(image), k, pictures)

    def neighbours(
        image: FileData, space: Literal["memory", "embedding"] = "memory", k: int = 20, model: str | None = None
    ) -> list[dict[str, Any]]:
        """The memories of a vision model that are nearest to a picture, best first.

        Args:
            image: the picture to compare with the memory.
            space: memory compares projections, as the loss does; embedding compares the backbone's output.
            k: how many.
            model: a model that this server has open; left out, the one its page opens with.
        Returns:
            id, score, image_id, uri, class_name, step and box of each.
        """
        if k > MAX_K:
            raise ModelError(f"k is {k}; ask for at most {MAX_K} neighbours.")
        workbench, picture = named(context, model), opened(image)
        with context.turns.take("model"):
            return workbench.neighbours(picture, space=space, k=k).records()

    def search(
        image: FileData, gallery: str | None = None, k: int = 20, model: str | None = None
    ) -> list[dict[str, Any]]:
        """The pictures of a gallery, or the memories of a vision model, that are most like a picture, best first.

        Args:
            image: the picture to search with.
            gallery: the name of a gallery that this model has embedded; left out, the memory is searched.
            k: how many.
            model: a model that this server has open; left out, the one its page opens with.
        Returns:
            rank, score, id, uri and class_name of each; of a gallery also width and height.
        """
        if not 1 <= k <= MAX_K:
            raise ModelError(f"k is {k}; ask for 1 to {MAX_K} pictures.")
        return records_like(context, named(context, model), opened(image), gallery, k)

    def match(
        image_a: FileData,
        image_b: FileData,
        model: str | None = None,
        rule: Literal["mutual", "argmax"] = "mutual",
        facet: Literal["token", "key", "query", "value"] | None = None,
        layer: int | None = None,
        n: int | None = 40,
        size: int | None = None,
    ) -> dict[str, Any]:
        """Which patches of one picture a vision model finds in another, best first.

        Args:
            image_a: the first picture.
            image_b: the second picture.
            model: a model that this server has open; left out, the one its page opens with.
            rule: mutual, each is the other's nearest by cosine; argmax, the largest raw product for each patch of A.
            facet: token, key, query or value; left out, the measured best.
            layer: transformer block or stage, 0-based; left out, the measured best.
            n: how many matches at most.
            size: long side in pixels at which the model reads each picture; as it is if left out.
        Returns:
            Points in pixels of each original picture, patches, and cosine scores.
        """
        workbench, a, b = named(context, model), opened(image_a), opened(image_b)
        with context.turns.take("model"):
            return workbench.match(a, b, rule, facet, layer, n, size).summary()

    def map_points(
        space: Literal["memory", "embedding"] = "memory", model: str | None = None
    ) -> tuple[FileData, dict[str, Any]]:
        """The map of a vision model's memory: a place in the plane for every memory, near ones alike.

        Args:
            space: memory compares projections, as the loss does; embedding compares the backbone's output.
            model: a model that this server has open; left out, the one its page opens with.
        Returns:
            A parquet file (slot, x, y, cluster, class_name, uri, step) and how the map was made.
        """
        from analysis.map import map_space

        workbench = named(context, model)
        layout = context.layouts.of(workbench, space)
        memory = workbench.model.memory
        assert memory is not None  # or there was no layout
        made_as = layout.parameters or {"method": "pca", "space": map_space(workbench.model, space)}
        folder = Path(get_upload_folder(), f"map-{layout.key}")
        return saved("map.parquet", lambda: points_table(layout, memory, context.public), folder), made_as

    def model_card(model: str | None = None) -> dict[str, Any]:
        """What is known of a model: architecture, data, memory, figures, hashes.

        Args:
            model: a model that this server has open; left out, the one its page opens with.
        """
        return named(context, model).model.card

    for endpoint in (attention, heads, pca, compare, match, neighbours, search, map_points, model_card):
        gr.api(spoken(endpoint), api_name=endpoint.__name__, queue=False)


class Refusal(gr.Error):
    """A mistake in one sentence, without the quotes that Gradio puts around it when it is told as text."""

    def __str__(self) -> str:
        return self.message


def named(context: Context, model: str | None):
    """The workbench of a handle that is open here, or of a source that the picker lists and that is cached.

    None is the model the page opens with.
    """
    if model in (None, context.source):
        return context.workbench()
    opened = context.opened()
    with suppress(ModelError):
        return opened.models[model]
    sources = [entry.source for entry in offered(context) if entry.cached]
    for source in [*sources, *(source for source, _ in checkpoints(context))]:
        if model in (source, told(context, source)):
            return opened.models[opened.models.open(source)]
    raise ModelError("This model is not served here; leave `model` out, or name one that the page lists as cached.")


def npz_bytes(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def opened(image: FileData) -> bytes:
    """The file a program has uploaded."""
    return uploaded(image.path).read_bytes()


def saved(name: str, make: Callable[[], bytes], folder: Path | None = None) -> FileData:
    """A file to fetch, which goes with the uploads; one that is the same for all is made once in its `folder`."""
    path = (folder or Path(tempfile.mkdtemp(dir=get_upload_folder()))) / name
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, make())
    return FileData(path=str(path), orig_name=name)


def spoken(endpoint: Callable) -> Callable:
    """The endpoint with its errors as one sentence; values of another type than it names are mistakes too."""
    checked, parameters = validate_call(endpoint), list(signature(endpoint).parameters)

    @wraps(endpoint)
    def answer(*arguments: Any) -> Any:
        try:
            return checked(*arguments)
        except ValidationError as error:
            wrong = error.errors(include_input=False, include_url=False)[0]
            name = parameters[wrong["loc"][0]] if isinstance(wrong["loc"][0], int) else str(wrong["loc"][0])
            raise Refusal(f"{name} cannot be used: {wrong['msg']}.", print_exception=False) from None
        except Exception as error:
            told = explain(error)
            raise Refusal(f"{told['title']} {told['text']}", print_exception=False) from None

    return answer
