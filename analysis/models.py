"""Several opened models within a memory budget, each by its handle."""

from __future__ import annotations

import threading
from collections.abc import Hashable

import torch

from analysis.workbench import Workbench
from memssl_core.errors import ModelError
from memssl_core.sources import Model, open_model, source_state

MODELS_BUDGET_BYTES = 3 << 30


class Models:
    """Opened models by handle; the least recently used go first when all together pass the budget.

    A handle stays good: a model that went is opened again when it is asked for. `home` is the device they were given,
    `device` the one they are on.
    """

    def __init__(self, budget_bytes: int = MODELS_BUDGET_BYTES, *, device: str | torch.device = "cpu") -> None:
        self.home = self.device = torch.device(device)
        self._budget_bytes = budget_bytes
        self._open: dict[str, Workbench] = {}  # least recently used first
        self._sources: dict[str, str] = {}
        self._handles: dict[tuple[str, Hashable], str] = {}
        self._lock, self._opening = threading.Lock(), threading.Lock()

    def open(self, source: str) -> str:
        """Open a model, unless it is open already, and return its handle. Raises what `open_model` raises."""
        return self._opened(source)[0]

    def __getitem__(self, handle: str) -> Workbench:
        """The workbench behind a handle. ModelError if there was never one, or its source has changed since."""
        with self._lock:
            if handle in self._open:
                return self._touch(handle)
            source = self._sources.get(handle)
        if source is None:
            raise ModelError("This model is not open here; choose it again.")
        found, workbench = self._opened(source)
        if found != handle:
            raise ModelError("This model was replaced since you opened it; choose it again.")
        return workbench

    def _opened(self, source: str) -> tuple[str, Workbench]:
        with self._opening:  # one at a time; models that are open stay reachable meanwhile
            seen = source, source_state(source)
            with self._lock:
                handle = self._handles.get(seen, "")
                if handle in self._open:
                    return handle, self._touch(handle)
            model = open_model(source)
            handle = _handle(model)
            with self._lock:
                self._open.setdefault(handle, Workbench(model, device=self.device))
                self._handles[seen], self._sources[handle] = handle, source
                return handle, self._touch(handle)

    def move(self, device: str | torch.device) -> None:
        """Answer on this device from now on, and give back what was held on another; not to be called while a question
        is being answered."""
        with self._lock:
            left, self.device = self.device, torch.device(device)
            for workbench in self._open.values():
                workbench.move(self.device)
        if left.type == "cuda":
            torch.cuda.empty_cache()

    def is_current(self, handle: str) -> bool:
        """Whether the source of this model still leads to it; one that was touched is opened again to see."""
        source = self._sources.get(handle)
        return source is not None and self.open(source) == handle

    def __len__(self) -> int:
        """How many are held now."""
        return len(self._open)

    def _touch(self, handle: str) -> Workbench:
        self._open[handle] = self._open.pop(handle)
        held = sum(workbench.model.nbytes for workbench in self._open.values())
        while held > self._budget_bytes and len(self._open) > 1:
            held -= self._open.pop(next(iter(self._open))).model.nbytes
        return self._open[handle]


def _handle(model: Model) -> str:
    bundle_hash = model.card["bundle_hash"]
    return model.model_hash[:12] + (f"-{bundle_hash[:8]}" if bundle_hash else "")
