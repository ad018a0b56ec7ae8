"""When memory runs out: the trainer is the first to go, and where it can still speak it says so in one sentence."""

from __future__ import annotations

import errno
import mmap
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from memssl_core.config import TrainConfig
from memssl_core.errors import RunError

_SCORE = Path("/proc/self/oom_score_adj")  # of Linux; elsewhere it is not there
_FIRST = 500  # of 1000; the page keeps 0
_RESERVE = 16 << 20  # bytes of address space, never touched, with which a failure is told and files are closed
_WORDS = (
    *("defaultcpuallocator", "can't allocate memory", "cannot allocate memory", "out of memory", "bad_alloc"),
    *("can't start new thread", "shared memory", "killed by signal: killed"),  # the last two are those of workers
)


@contextmanager
def first_to_go() -> Iterator[None]:
    """Until the end of the block the kernel, short of memory, ends this process and its workers before others."""
    before = ""
    with suppress(OSError):
        before = _SCORE.read_text()
        _SCORE.write_text(str(max(_FIRST, int(before))))
    try:
        yield
    finally:
        with suppress(OSError):
            _SCORE.write_text(before)


@contextmanager
def explaining_memory(config: TrainConfig) -> Iterator[None]:
    """RunError, one sentence, where there is not enough memory; what the failed computation held is let go of."""
    reserve = mmap.mmap(-1, _RESERVE)
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as reason:
        reserve.close()
        if not is_of_memory(reason):
            raise
        traceback.clear_frames(reason.__traceback__)
        where = " on the GPU" if isinstance(reason, torch.OutOfMemoryError) else ""
        raise RunError(
            f"There is not enough memory{where} for batch_size {config.batch_size} with accumulate "
            f"{config.accumulate}; the last checkpoint stands. Lower batch_size or raise accumulate in a new run, or "
            "free some memory and go on with this one."
        ) from reason
    finally:
        reserve.close()


def is_of_memory(reason: BaseException) -> bool:
    """Whether memory, of this machine or of its GPU, has run out here or in a worker."""
    if isinstance(reason, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(reason, OSError):
        return reason.errno == errno.ENOMEM
    return isinstance(reason, RuntimeError) and any(words in str(reason).lower() for words in _WORDS)
