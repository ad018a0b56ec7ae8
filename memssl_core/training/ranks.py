"""The processes of one run: torchrun starts them, each trains on its share of every batch, rank 0 writes the files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from memssl_core.device import choose_device
from memssl_core.errors import ConfigError, MemsslError, RunError

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)  # for the first process, while it probes and writes
LOST = (
    "Another process of this run has ended, so this one ends too; the last checkpoint stands. "
    "Its own message says why; start the same command again to go on."
)
_OF_PEERS = ("gloo", "nccl", "connection", "peer", "tcpstore", "socket", "broken pipe", "timed out")


@dataclass(frozen=True)
class Ranks:
    """Which process this is, and how it speaks with the others; every method is called by all of them together.

    Raises: RunError, in every method, when another process is gone.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sums(self, *values: float) -> list[float]:
        """Each value, summed over the processes."""
        if self.size == 1:
            return list(values)
        told = torch.tensor(values, dtype=torch.float64, device=self.device)
        with self.speaking():
            dist.all_reduce(told)
        return told.tolist()

    def each(self, value: float) -> list[float]:
        """The value of every process, by rank."""
        return self.sums(*(value if rank == self.rank else 0.0 for rank in range(self.size)))

    def gather_words(self, words: tuple[str, ...]) -> tuple[str, ...]:
        """The words of all processes."""
        if self.size == 1:
            return words
        told: list[tuple[str, ...]] = [()] * self.size
        with self.speaking():
            dist.all_gather_object(told, words)
        return tuple(word for of_rank in told for word in of_rank)

    def gather(self, *columns: Tensor) -> tuple[Tensor, ...]:
        """Each [B, ...] with those of all processes, in the order of their ranks: [B_0 + B_1 + ..., ...]."""
        if self.size == 1:
            return columns
        count = torch.tensor([len(columns[0])], device=self.device)
        counts = [torch.empty_like(count) for _ in range(self.size)]
        with self.speaking():
            dist.all_gather(counts, count)
        lengths = [int(one) for one in counts]
        return tuple(self._gathered(column, lengths) for column in columns)

    def _gathered(self, column: Tensor, lengths: list[int]) -> Tensor:
        padded = column.new_zeros(max(lengths), *column.shape[1:])
        padded[: len(column)] = column
        parts = [torch.empty_like(padded) for _ in lengths]
        with self.speaking():
            dist.all_gather(parts, padded)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` gives on rank 0, for all; a MemsslError there is raised by all."""
        if self.size == 1:
            return make()
        told: list[object] = [None, None]
        failure: BaseException | None = None
        if self.is_first:
            try:
                told[0] = make()
            except BaseException as reason:
                failure, told[1] = reason, str(reason) if isinstance(reason, MemsslError) else LOST
        try:
            with self.speaking():
                dist.broadcast_object_list(told, src=0, device=self.device)
        except RunError as lost:
            raise failure or lost from None
        if failure is not None:
            raise failure
        if told[1] is not None:
            raise RunError(str(told[1]))
        return told[0]  # type: ignore[return-value]

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Errors of a broken connection in one sentence."""
        try:
            yield
        except RuntimeError as reason:
            is_of_peers = isinstance(reason, dist.DistError) or any(word in str(reason).lower() for word in _OF_PEERS)
            if self.size > 1 and is_of_peers:
                raise RunError(LOST) from reason
            raise


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """All processes of the group that torchrun has started (its environment names them), else this one alone.

    Args: device, as in the config; with several CUDA devices each process of a machine takes its own.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks(device=choose_device(device))
        return
    local = int(os.environ["LOCAL_RANK"])
    if device in ("auto", "cuda") and torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise ConfigError(f"There is no GPU for process {local} here; start {torch.cuda.device_count()} of them.")
        torch.cuda.set_device(local)
        chosen = torch.device("cuda", local)
    else:
        chosen = choose_device("cpu" if device == "auto" else device)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=PATIENCE)
    yield Ranks(dist.get_rank(), size, chosen)
    dist.destroy_process_group()  # not after an error: it would wait for processes that are gone
