"""Which attention head matters: what silencing each does to a model's answer about a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from memssl_core.config import TrainConfig
from memssl_core.data.images import ImageSource
from memssl_core.errors import MemsslError, ModelError
from memssl_core.jobs import Emit

if TYPE_CHECKING:
    from analysis.workbench import Workbench

Turn = Callable[[], AbstractContextManager]
TOP = 20
"""memories whose staying is counted"""
COLUMNS = ("block", "head", "kl", "kept", "moved")


@dataclass(frozen=True, eq=False)
class HeadRow:
    """The effect of silencing each of H attention heads of one transformer block, one at a time."""

    block: int
    kl: np.ndarray | None
    """float32 [H], nats: KL(p, q) of the distribution over all written slots as it is, p, and silenced, q; None without
    a memory"""
    kept: np.ndarray | None
    """float32 [H], 0..1: how much of the `top` strongest memories still belongs to the `top` strongest"""
    moved: np.ndarray
    """float32 [H], 0..2: 1 - cosine of the embedding as it is and silenced"""
    top: int
    slots: int
    """written ones, 0 without a memory"""
    temperature: float | None
    """of the distribution: the teacher's"""


@dataclass(frozen=True, eq=False)
class HeadTable:
    """`HeadRow`s of L transformer blocks: kl, kept and moved [L, H]."""

    kl: np.ndarray | None
    kept: np.ndarray | None
    moved: np.ndarray
    top: int
    slots: int
    temperature: float | None
    blocks: tuple[int, ...]

    @property
    def rows(self) -> Iterator[list[Any]]:
        """For tables, in the order of COLUMNS, seven digits; None where nothing was measured."""
        for at, head in np.ndindex(self.moved.shape):
            values = (None if part is None else f"{part[at, head]:.7g}" for part in (self.kl, self.kept, self.moved))
            yield [self.blocks[at], head, *values]

    def summary(self) -> dict[str, Any]:
        """Plain values for JSON."""
        kl, kept, moved = (None if part is None else part.tolist() for part in (self.kl, self.kept, self.moved))
        told = {"top": self.top, "slots": self.slots, "temperature": self.temperature}
        return {"blocks": list(self.blocks), "kl": kl, "kept": kept, "moved": moved, **told}


def head_row(
    workbench: Workbench,
    image: ImageSource,
    block: int,
    *,
    top: int = TOP,
    key: str | None = None,
    turn: Turn = nullcontext,
) -> HeadRow:
    """Silence each attention head of a transformer block (0-based, negatives from the end), one at a time.

    The picture is read as the memory's were, by the model's own transform. The distribution is the teacher's: softmax
    over every written slot of projection · memory / temperature; a model without head has embeddings in their place.
    Its temperature is the one its bundle tells, else that with which published runs end (docs/METHOD.md).
    The model runs within `turn()`, again and again, so that others can be let in between.
    Raises: ModelError as `Workbench.attention`, and for a `top` below 1.
    """
    if top < 1:
        raise ModelError(f"top is {top}; count at least 1 memory.")
    embedding, silenced = workbench.silenced(image, block, key=key, turn=turn)
    block = block % workbench.model.card["blocks"]
    moved = (1 - _unit(silenced) @ _unit(embedding)).clip(0).astype(np.float32)
    with turn():
        cosines = workbench.slot_cosines(np.concatenate([embedding[None], silenced]))
    if cosines is None:
        return HeadRow(block, None, None, moved, top, 0, None)
    temperature = _temperature(workbench.model.card)
    kl, kept = effect_on_memories(cosines[0], cosines[1:], temperature, top)
    return HeadRow(block, kl, kept, moved, top, cosines.shape[1], temperature)


def head_table(
    workbench: Workbench,
    image: ImageSource,
    *,
    top: int = TOP,
    emit: Emit | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    turn: Turn = nullcontext,
) -> HeadTable:
    """`head_row` of every transformer block, from the last, which takes least, to the first.

    Tells `emit("progress", step=blocks, total=blocks, words=…)`. Raises: also MemsslError when it was stopped.
    """
    count, rows = workbench.model.card["blocks"], []
    for block in reversed(range(max(count, 1))):
        if should_stop():
            raise MemsslError("Stopped; no table was made.")
        rows.append(head_row(workbench, image, block, top=top, turn=turn))
        if emit:
            emit("progress", step=len(rows), total=count, words=f"block {block}")
    rows.reverse()
    kl, kept, moved = ([getattr(row, name) for row in rows] for name in ("kl", "kept", "moved"))
    has_memory, last = rows[-1].slots > 0, rows[-1]
    parts = np.stack(kl) if has_memory else None, np.stack(kept) if has_memory else None, np.stack(moved)
    return HeadTable(*parts, last.top, last.slots, last.temperature, tuple(row.block for row in rows))


def effect_on_memories(
    whole: np.ndarray, silenced: np.ndarray, temperature: float, top: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines with M slots, [M] as they are and [H, M] with each head silenced -> `HeadRow.kl` and `.kept`, [H] each.

    All M count as the strongest if there are no more than `top`; a tie with the last of them belongs to them.
    """
    log_p, log_q = (_log_softmax(cosines / temperature) for cosines in (whole.astype(float), silenced.astype(float)))
    kl = (np.exp(log_p) * (log_p - log_q)).sum(-1).clip(0)
    top = min(top, len(whole))
    strongest = np.argpartition(whole, -top)[-top:]
    last = np.partition(silenced, -top)[:, -top]
    kept = (silenced[:, strongest] >= last[:, None]).mean(-1)
    return kl.astype(np.float32), kept.astype(np.float32)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _temperature(card: dict[str, Any]) -> float:
    return (card["temperatures"] or {}).get("teacher") or TrainConfig.teacher_temperature


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
