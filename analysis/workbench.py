"""One opened model and its caches, a method a question."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import cachetools
import numpy as np
import torch

from analysis.attention import Attention, Query, query_tokens, rows_of_block
from analysis.graph import slot_rows
from analysis.heads import TOP, HeadRow, HeadTable, Turn, head_row, head_table
from analysis.matches import DEFAULT_FACET, DEFAULT_LAYER, Foreground, Matches, Pair, holding, only
from analysis.neighbours import Neighbours, SlotSearch, Space
from analysis.pca import Pca, pca_colours
from analysis.rollout import Rolled, rolled_rows
from analysis.tokens import MAX_TOKENS, Tokens, Walked
from memssl_core.bundle.table import MemoryTable
from memssl_core.data.images import Frame, ImageSource, decode_image, picture_key
from memssl_core.errors import ModelError
from memssl_core.jobs import Emit
from memssl_core.model.backbone import embed
from memssl_core.model.features import (
    FACETS,
    Facet,
    facet_of,
    has_class_token,
    n_layers,
    n_prefix,
    why_no_attention,
)
from memssl_core.model.matching import RULES, Rule, without_position
from memssl_core.model.silencing import silenced_outputs
from memssl_core.sources import Model


class Workbench:
    """Questions about one model. `image` is a path, bytes, a PIL image or uint8 [H, W, 3]; safe across threads.

    Tokens and embeddings of the last pictures are kept. `key` names a picture there; without it every question takes
    the SHA-256 of the file or pixels, some 100 ms for 12 million pixels. The same key must mean the same picture.
    """

    def __init__(self, model: Model, *, device: str | torch.device = "cpu", max_tokens: int = MAX_TOKENS) -> None:
        self.model, self.max_tokens, self._tokens = model, max_tokens, Tokens(model, max_tokens)
        self._embeddings: cachetools.LRUCache = cachetools.LRUCache(256)
        self._searches: dict[str, SlotSearch] = {}
        self._caches, self._building = threading.Lock(), threading.Lock()
        self.move(device)

    def move(self, device: str | torch.device) -> None:
        """Answer on this device from now on; not to be called while a question is being answered."""
        self.device = torch.device(device)
        for module in (self.model.backbone, self.model.head, self.model.student):
            if module is not None:
                module.to(self.device)
        self._tokens.move(self.device)

    def pixels(self, image: ImageSource, size: int | None = None) -> tuple[np.ndarray, Frame]:
        """float32 [3, H, W] as the backbone gets a picture for maps, and its frame.

        The aspect is kept, the long side is `size` pixels (None: the picture's own) up to `max_tokens` patches and
        MAX_INPUT_PIXELS, sides are multiples of the patch side.
        """
        pixels, frame = self._tokens.pixels(image, size)
        return pixels.numpy(), frame

    def attention(
        self,
        image: ImageSource,
        layer: int = -1,
        query: Query = "cls",
        size: int | None = None,
        *,
        key: str | None = None,
    ) -> Attention:
        """Rows [attention heads, R, N] of transformer block `layer` (0-based, negatives from the end).

        `query`: 'cls', 'register:I', a patch index, (x, y) pixels of the picture, a list of these, or 'mean' for the
        mean over all patches. Raises: ModelError if the model has no such block or token, or no attention to show.
        """
        blocks, layer = self._blocks(), self._layer(layer)
        walked = self._tokens.walk(image, size, key)
        queries = self._queries(query, walked.frame)
        rows = rows_of_block(blocks[layer], walked.blocks[layer], queries, n_prefix(self.model.backbone))
        return self._attention(rows, walked, (layer,), queries)

    def attention_all(
        self, image: ImageSource, query: Query = "cls", size: int | None = None, *, key: str | None = None
    ) -> Attention:
        """Rows [L, attention heads, N] of one query (as in `attention`) in every transformer block."""
        blocks, walked = self._blocks(), self._tokens.walk(image, size, key)
        queries = self._one_query(query, walked.frame)
        prefix, pairs = n_prefix(self.model.backbone), zip(blocks, walked.blocks, strict=True)
        rows = np.stack([rows_of_block(block, entered, queries, prefix)[:, 0] for block, entered in pairs])
        return self._attention(rows, walked, tuple(range(len(blocks))), queries)

    def rollout(
        self,
        image: ImageSource,
        query: Query = "cls",
        size: int | None = None,
        *,
        start: int = 0,
        key: str | None = None,
    ) -> Rolled:
        """Attention rollout of one query (as in `attention`) from transformer block `start` to every later one."""
        blocks, start, walked = self._blocks(), self._layer(start), self._tokens.walk(image, size, key)
        queries, prefix = self._one_query(query, walked.frame), n_prefix(self.model.backbone)
        first = torch.zeros(walked.final.shape[1], device=self.device)
        first[queries or slice(prefix, None)] = 1
        attentions = [block.get_submodule("attn") for block in blocks]
        rows = rolled_rows(attentions, walked.blocks, first / first.sum(), start).cpu().numpy()
        grid = walked.frame.rows, walked.frame.columns
        return Rolled(rows, start, grid, prefix, walked.frame, tuple(queries))

    def embedding(self, image: ImageSource, *, key: str | None = None) -> np.ndarray:
        """float32 [C]: the backbone's output for the picture under the model's own transform (resize, centre crop)."""
        key = key or picture_key(image)
        with self._caches:
            known = self._embeddings.get(key)
        if known is None:
            pixels = self.model.transform(decode_image(image))[None].to(self.device)
            with self._tokens.forward, torch.inference_mode():
                known = embed(self.model.backbone, pixels)[0].float().cpu().numpy()
            with self._caches:
                self._embeddings[key] = known
        return known.copy()

    def projection(self, image: ImageSource, *, key: str | None = None) -> np.ndarray:
        """float32 [D], unit length: the head's output for `embedding`, the teacher's in a bundle that holds both
        networks. ModelError if the model has no head."""
        return self._projections(self.embedding(image, key=key)[None])[0]

    def _projections(self, embeddings: np.ndarray) -> np.ndarray:
        """[n, C] -> float32 [n, D] of unit length."""
        head = self.model.head
        if head is None:
            raise ModelError("This model has no projection head, so the memory space is closed to it.")
        with self._tokens.forward, torch.inference_mode():
            return head(torch.from_numpy(embeddings).to(self.device)).cpu().numpy()

    def student_projection(self, image: ImageSource) -> np.ndarray:
        """float32 [D], unit length: what the student makes of the picture. ModelError if the model has no student."""
        student = self.model.student
        if student is None:
            raise ModelError("This model holds no student, so there is nothing to compare its teacher with.")
        pixels = self.model.transform(decode_image(image))[None].to(self.device)
        with self._tokens.forward, torch.inference_mode():
            return student(pixels)[0].cpu().numpy()

    def silenced(
        self, image: ImageSource, block: int, *, key: str | None = None, turn: Turn = nullcontext
    ) -> tuple[np.ndarray, np.ndarray]:
        """`embedding`, and what becomes of it as each attention head of a transformer block falls silent: float32 [C]
        and [attention heads, C]. What entered the blocks is kept, so one after the other runs the front but once.

        The model runs within `turn()`, once for the picture and once for some heads at a time."""
        block = self._layer(block)
        with turn():
            passage = self._tokens.passage(image, key)

        @contextmanager
        def alone() -> Iterator[None]:
            with turn(), self._tokens.forward:
                yield

        silenced = silenced_outputs(self.model.backbone, passage, block, alone)
        return passage.embedding[0].float().cpu().numpy(), silenced.float().cpu().numpy()

    def head_row(
        self, image: ImageSource, block: int, top: int = TOP, *, key: str | None = None, turn: Turn = nullcontext
    ) -> HeadRow:
        """See `analysis.heads.head_row`."""
        return head_row(self, image, block, top=top, key=key, turn=turn)

    def head_table(
        self,
        image: ImageSource,
        top: int = TOP,
        *,
        emit: Emit | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        turn: Turn = nullcontext,
    ) -> HeadTable:
        """See `analysis.heads.head_table`."""
        return head_table(self, image, top=top, emit=emit, should_stop=should_stop, turn=turn)

    def features(
        self,
        image: ImageSource,
        size: int | None = None,
        *,
        facet: Facet = "token",
        layer: int = -1,
    ) -> tuple[np.ndarray, Frame]:
        """float32 [rows, columns, C] of the patches, or of the cells of a feature map, and the frame of them.

        `layer` is a transformer block, or a stage of a convolutional or hierarchical model (0-based, negatives from
        the end), `facet` what it gives out ('token'; the last layer's go through the final norm) or the keys, queries
        or values of its attention. Sizes as in `pixels`; a model that takes no picture but its own size sees its own
        centre crop if `size` is None. Raises: ModelError if the model has no such layer or facet.
        """
        layer = self._layer(layer)
        if facet not in FACETS:
            raise ModelError(f"There is no facet {facet!r}; choose one of {', '.join(FACETS)}.")
        if why_no_attention(self.model.backbone):
            if facet != "token":
                raise ModelError(f"This model has no {facet} facet that could be read; choose token.")
            known = self._tokens.map(image, size, layer)
            return known.cells, known.frame
        walked = self._tokens.walk(image, size, None)
        if facet != "token":
            attention = self._blocks()[layer].get_submodule("attn")
            with torch.inference_mode():
                tokens = facet_of(attention, walked.blocks[layer].tokens, facet)
        elif layer == len(walked.blocks) - 1:
            tokens = walked.final
        else:
            tokens = walked.blocks[layer].left
        cells = tokens[0, n_prefix(self.model.backbone) :].float().cpu().numpy()
        return cells.reshape(walked.frame.rows, walked.frame.columns, -1), walked.frame

    def pca(
        self,
        image_a: ImageSource,
        image_b: ImageSource | None = None,
        facet: Facet | None = None,
        layer: int | None = None,
        size: int | None = None,
        *,
        foreground: bool = False,
    ) -> Pca:
        """Principal components of `features`, by default the last layer's tokens; see `analysis.pca.pca_colours`."""
        images = [image for image in (image_a, image_b) if image is not None]
        asked: Any = {"facet": facet or "token", "layer": -1 if layer is None else layer}
        found = [self.features(one, size, **asked) for one in images]
        colours = pca_colours(*(cells for cells, _ in found), foreground=foreground)
        return replace(colours, frame_a=found[0][1], frame_b=found[1][1] if image_b is not None else None)

    def pair(
        self,
        image_a: ImageSource,
        image_b: ImageSource,
        facet: Facet | None = None,
        layer: int | None = None,
        size: int | None = None,
        *,
        position: bool = True,
    ) -> Pair:
        """The patch features of two pictures, to be matched; the default facet and layer are measured ones.

        `position` False: without what a linear fit can read of a patch's place. Otherwise as `features`.
        """
        facet, layer = facet or self.match_default[0], self._layer(self.match_default[1] if layer is None else layer)
        cells_a, frame_a = self.features(image_a, size, facet=facet, layer=layer)
        cells_b, frame_b = self.features(image_b, size, facet=facet, layer=layer)
        a, b = (cells.reshape(-1, cells.shape[2]) for cells in (cells_a, cells_b))
        if not position:
            a, b = without_position(a, cells_a.shape[:2], b, cells_b.shape[:2])
        return Pair(a, b, frame_a, frame_b, facet, layer)

    def match(
        self,
        image_a: ImageSource,
        image_b: ImageSource,
        rule: Rule = "mutual",
        facet: Facet | None = None,
        layer: int | None = None,
        n: int | None = None,
        size: int | None = None,
        *,
        foreground: Foreground = "none",
        position: bool = True,
    ) -> Matches:
        """The n best matches of the patches of two pictures (None: all), see `Pair.match`.

        `foreground`: only matches that lie in it on both sides, by the attention of the whole picture or by the first
        principal component. Raises: ModelError if the model has no such facet, layer or attention.
        """
        if rule not in RULES or (n is not None and n < 1):
            raise ModelError(f"There are no {n} matches by rule {rule!r}; ask for 1 or more, by {' or '.join(RULES)}.")
        pair = self.pair(image_a, image_b, facet, layer, size, position=position)
        found = pair.match(rule)
        if foreground != "none":
            if foreground == "pca":
                in_a, in_b = pair.foreground_by_pca()
            else:
                in_a, in_b = (self.foreground(image, size) for image in (image_a, image_b))
            found = only(found, in_a[found.patches[:, 0]] & in_b[found.patches[:, 1]])
        return only(found, slice(n))

    def foreground(self, image: ImageSource, size: int | None = None) -> np.ndarray:
        """bool [N]: the patches that hold most of the last block's attention from the class token (of all patches, in
        a model without one), mean over attention heads."""
        query = "cls" if has_class_token(self.model.backbone) else "mean"
        found = self.attention(image, -1, query, size)
        return holding(found.rows.mean((0, 1))[found.n_prefix :])

    @property
    def match_default(self) -> tuple[Facet, int]:
        """The facet and the layer, from the end, that measurements chose; of a feature map the last stage."""
        if why_no_attention(self.model.backbone):
            return "token", -1
        return DEFAULT_FACET, max(DEFAULT_LAYER, -n_layers(self.model.backbone))

    def neighbours(
        self, image: ImageSource, space: Space = "memory", k: int = 20, *, key: str | None = None
    ) -> Neighbours:
        """The k written slots nearest to a picture, exactly: projections ('memory') or embeddings ('embedding').

        A model without head remembers embeddings: both spaces are then that one, and the answer says so.

        Raises: ModelError if the model has no memory, or not this space.
        """
        if space not in ("memory", "embedding"):
            raise ModelError(f"There is no space {space!r}; choose memory or embedding.")
        self._memory()
        if self.model.head is None:  # its memory holds embeddings
            space = "embedding"
        query = (self.projection if space == "memory" else self.embedding)(image, key=key)
        return self._search(space).nearest(query, k)

    def neighbours_of_slot(self, slot: int, space: Space = "memory", k: int = 20) -> Neighbours:
        """The k other written slots nearest to a slot, exactly. ModelError as `neighbours`, or for a slot of noise."""
        search = self._search(space)
        at = np.searchsorted(search.slots, slot)
        if at == len(search.slots) or search.slots[at] != slot:
            raise ModelError(f"Slot {slot} holds noise, so it has no neighbours; choose another one.")
        found = search.nearest(search.rows[at], k + 1)
        return found.without(slot, k)

    def slots(self, space: Space = "memory") -> tuple[np.ndarray, np.ndarray]:
        """int64 [M], the written slots, rising, and their float32 [M, D] or [M, C] unit rows in this space."""
        return slot_rows(self._memory(), space, has_head=self.model.head is not None)

    def slot_cosines(self, embeddings: np.ndarray) -> np.ndarray | None:
        """[n, C] embeddings -> float32 [n, M]: cosines with every written slot, of projections, or of embeddings in a
        model without head. None if the model has no memory or nothing is written."""
        if not self.model.card["memory_filled"]:
            return None
        if self.model.head is None:
            rows, space = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True), "embedding"
        else:
            rows, space = self._projections(embeddings), "memory"
        return rows @ self._search(space).rows.T

    def _search(self, space: Space) -> SlotSearch:
        with self._building:
            if space not in self._searches:
                self._searches[space] = SlotSearch(self._memory(), space, has_head=self.model.head is not None)
        return self._searches[space]

    def _memory(self) -> MemoryTable:
        if self.model.memory is None:
            raise ModelError("This model has no memory, so it has no neighbours to show; open a bundle that has one.")
        return self.model.memory

    def _blocks(self) -> list[torch.nn.Module]:
        if reason := why_no_attention(self.model.backbone):
            raise ModelError(reason)
        return list(self.model.backbone.blocks)  # type: ignore[arg-type]

    def _layer(self, layer: int) -> int:
        count = n_layers(self.model.backbone)
        if not -count <= layer < count:
            noun = "stages" if self.model.card["family"] == "map" else "transformer blocks"
            raise ModelError(f"There is no layer {layer}; this model has {noun} 0 to {count - 1}.")
        return layer % count

    def _one_query(self, query: Query, frame: Frame) -> list[int]:
        queries = self._queries(query, frame)
        if len(queries) > 1:
            raise ModelError(f"{len(queries)} queries were asked for where one is shown; choose one.")
        return queries

    def _queries(self, query: Query, frame: Frame) -> list[int]:
        backbone = self.model.backbone
        return query_tokens(query, n_prefix=n_prefix(backbone), has_class_token=has_class_token(backbone), frame=frame)

    def _attention(self, rows: np.ndarray, walked: Walked, layers: tuple[int, ...], queries: list[int]) -> Attention:
        grid = walked.frame.rows, walked.frame.columns
        prefix, pixels = n_prefix(self.model.backbone), walked.pixels.numpy()
        norms = torch.cat([walked.blocks[layer].left[:, prefix:].norm(dim=2) for layer in layers]).float().cpu().numpy()
        return Attention(rows, grid, prefix, walked.frame, pixels, layers, tuple(queries), norms)
