"""What a run is at a step, and the way to a checkpoint and back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from memssl_core.config import TrainConfig
from memssl_core.data.datasets import Images
from memssl_core.device import choose_precision
from memssl_core.errors import RunError
from memssl_core.model.batch_norm import sync_batch_norms
from memssl_core.model.memory import Memory
from memssl_core.model.pair import Pair
from memssl_core.training.checkpoint import load_newest, save_checkpoint
from memssl_core.training.optimizer import make_optimizer
from memssl_core.training.ranks import Ranks

_SAVED = ("step", "images", "listing", "trained_s", "pair", "optimizer", "memory", "best", "untrained", "figures")


class TrainState:
    """Pair, optimizer, memory, step. Views, blocks and dropped parts follow from (seed, step) alone.

    `student` is the pair's student as it is to be called: with several processes its gradients are their mean.
    """

    student: nn.Module

    def __init__(self, config: TrainConfig, images: Images, ranks: Ranks | None = None) -> None:
        self.config, self.images, self.ranks = config, images, ranks or Ranks()
        self.device = self.ranks.device
        self.precision = choose_precision(config.precision, self.device)
        if config.threads:
            torch.set_num_threads(config.threads)
        self.steps_per_epoch = len(images) // config.batch_size
        self.steps = config.steps or max(1, round(config.epochs * self.steps_per_epoch))
        self.step = 0
        self.trained_s = 0.0
        self.listing = listing_hash(images)
        self.best: dict[str, list[float]] = {}
        """by figure of the probe: the best value, and its step"""
        self.untrained: dict[str, float] = {}
        """what the first probe told"""
        self.figures: dict[str, float] = {}
        """what the last one did"""
        torch.manual_seed(config.seed)
        self.pair = Pair(config).to(self.device).train()
        if self.ranks.size > 1:
            self.pair = sync_batch_norms(self.pair)
        generator = torch.Generator().manual_seed(config.seed)
        self.memory = Memory(config.memory_slots, config.projection_dim, generator=generator).to(self.device)
        self.optimizer = make_optimizer(self.pair.student, config)
        self.student = self.pair.student
        if self.ranks.size > 1:
            with self.ranks.speaking():
                self.student = DistributedDataParallel(self.pair.student, gradient_as_bucket_view=True)

    def save(self, folder: Path) -> Path:
        """Write a checkpoint. Raises: RunError if it cannot be written."""
        state = {
            "step": self.step,
            "steps": self.steps,
            "images": len(self.images),
            "listing": self.listing,
            "trained_s": self.trained_s,
            "config": asdict(self.config),
            "pair": self.pair.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "memory": self.memory.state_dict(),
            "best": self.best,
            "untrained": self.untrained,
            "figures": self.figures,
            "versions": {"torch": str(torch.__version__)},
        }
        return save_checkpoint(folder / "checkpoints", self.step, state)

    def restore(self, folder: Path) -> Iterator[str]:
        """Take up the newest checkpoint that can be read, if there is one; sentences on what was done.

        Rank 0 reads for all. Raises: RunError for other pictures than the run began with, or a state that is not whole.
        """
        found = self.ranks.from_first(lambda: load_newest(folder / "checkpoints"))
        if found is None:
            return
        state, warning = found
        if warning:
            yield warning
        if missing := sorted(set(_SAVED) - state.keys()):
            raise RunError(f"The checkpoint of {folder.name} lacks {', '.join(missing)}; restore a whole one.")
        if state["listing"] != self.listing:
            raise RunError(
                f"The pictures are not those that this run began with ({state['images']} then, {len(self.images)} now, "
                "by their names and classes); restore the data source, or start a new run folder."
            )
        try:
            self.pair.load_state_dict(state["pair"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.memory.load_state_dict(state["memory"])
            self._check_optimizer()
        except (RuntimeError, ValueError, KeyError) as reason:
            raise RunError(
                f"The checkpoint of {folder.name} does not fit its settings; restore the checkpoints or the settings."
            ) from reason
        for name in ("step", "trained_s", "best", "untrained", "figures"):
            setattr(self, name, state[name])
        filled = int((self.memory.step >= 0).sum())
        yield (
            f"Restored step {self.step} of {self.steps}: student, teacher, optimizer, memory "
            f"({filled} of {self.memory.slots} slots written), schedules and the order of pictures."
        )

    def _check_optimizer(self) -> None:
        """ValueError unless it knows something of the right shape of every parameter, as after any step."""
        for parameter in self.pair.student.parameters():
            known = self.optimizer.state.get(parameter, {})
            shapes = [value.shape for value in known.values() if isinstance(value, torch.Tensor) and value.ndim]
            if parameter.requires_grad and (not known or any(shape != parameter.shape for shape in shapes)):
                raise ValueError("the optimizer's state is not whole")


def listing_hash(images: Images) -> str:
    """SHA-256 over names and classes of the pictures, in order."""
    digest = hashlib.sha256()
    for uri in images.uris:
        digest.update(uri.encode("utf-8", "surrogateescape") + b"\0")
    digest.update(repr(images.class_names).encode())
    if images.labels is not None:
        digest.update(images.labels.astype("<i8").tobytes())
    return digest.hexdigest()
