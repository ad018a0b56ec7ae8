"""Bad-step capsules: what a step that could not be applied was made of, to be run again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from memssl_core.config import TrainConfig
from memssl_core.data.datasets import Images
from memssl_core.data.views import Batch
from memssl_core.errors import MemsslError, RunError
from memssl_core.jobs import replacing
from memssl_core.training.checkpoint import explaining_writes
from memssl_core.training.optimizer import clip_each_tensor
from memssl_core.training.ranks import Ranks
from memssl_core.training.schedules import Rates

if TYPE_CHECKING:
    from memssl_core.training.state import TrainState

_PARTS = ("step", "rank", "size", "config", "rates", "batch", "pair", "vectors", "order")


def write_capsule(folder: Path, state: TrainState, batch: Batch, rates: Rates, order: Tensor) -> Path:
    """`bad-steps/step-########-rank-#.pt`: the batch of this process, order, rates, and the weights before the step.

    Raises: RunError if it cannot be written.
    """
    path = folder / "bad-steps" / f"step-{state.step:08d}-rank-{state.ranks.rank}.pt"
    capsule = {
        "step": state.step,
        "rank": state.ranks.rank,
        "size": state.ranks.size,
        "config": asdict(state.config),
        "rates": asdict(rates),
        "batch": {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)},
        "pair": state.pair.state_dict(),
        "vectors": state.memory.vectors,
        "order": order,
    }
    with explaining_writes("The bad step"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            torch.save(capsule, file)
    return path


def replay(path: Path) -> dict[str, Any]:
    """Run a bad step again, on the CPU in float32, and say where it goes wrong.

    Returns: step, loss, kl, grad_norm (None where not finite); `pixels` (least, largest), `memory_bad_rows`, the slots
    that are not finite; `bad_weights`, `bad_modules` and `bad_gradients`, names in the order of the computation;
    `largest`, the modules with the largest finite outputs. Raises: RunError for a file that is no capsule.
    """
    from memssl_core.training.state import TrainState
    from memssl_core.training.step import forward_and_backward

    told = _read(path)
    try:
        config = TrainConfig(**{**told["config"], "precision": "fp32"})
        batch, rates = Batch(**told["batch"], skipped=()), Rates(**told["rates"])
        nobody = Images("", ("",) * config.batch_size, None, (), _no_picture)
        state = TrainState(config, nobody, Ranks(rank=int(told["rank"])))
        state.step = told["step"]
        state.pair.load_state_dict(told["pair"])
        state.memory.vectors.copy_(told["vectors"])
    except (TypeError, KeyError, ValueError, AttributeError, RuntimeError, MemsslError) as reason:
        raise RunError(f"{path.name} is damaged, or of another version; replay it with that one.") from reason
    bad_weights = [name for name, value in state.pair.named_parameters() if not value.isfinite().all()]
    seen: dict[str, float] = {}

    def look(name: str, out: object) -> None:
        seen[name] = max(seen.get(name, 0.0), _size(out))

    hooks = [
        module.register_forward_hook(lambda _, __, out, name=f"{who}.{name}": look(name, out))
        for who, network in (("student", state.pair.student), ("teacher", state.pair.teacher))
        for name, module in network.named_modules()
        if name and not list(module.children())
    ]
    done = forward_and_backward(state, batch, rates, told["order"])
    for hook in hooks:
        hook.remove()
    parameters = dict(state.pair.student.named_parameters())
    bad_gradients = [n for n, p in parameters.items() if p.grad is not None and not p.grad.isfinite().all()]
    norm = clip_each_tensor(parameters.values(), config.clip_norm)[0]
    pixels = batch.global_views
    return {
        "step": told["step"],
        "rank": told["rank"],
        "loss": _number(float(done.loss)),
        "kl": _number(float(done.loss - done.entropy)),
        "grad_norm": _number(norm),
        "pixels": [int(pixels.min()), int(pixels.max())],
        "memory_bad_rows": (~told["vectors"].isfinite().all(1)).nonzero().flatten().tolist(),
        "bad_weights": bad_weights,
        "bad_modules": [name for name, size in seen.items() if not size < float("inf")],
        "bad_gradients": bad_gradients,
        "largest": dict(sorted(((n, s) for n, s in seen.items() if s < float("inf")), key=lambda one: -one[1])[:5]),
    }


def _no_picture(_: int) -> Image.Image:
    raise NotImplementedError("a bad step has its views and needs no pictures")


def _read(path: Path) -> dict[str, Any]:
    try:
        told = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as reason:
        raise RunError(
            f"{path.name} cannot be read as a bad step; give a file of a run's bad-steps folder."
        ) from reason
    if not isinstance(told, dict) or set(_PARTS) - told.keys():
        raise RunError(f"{path.name} is no bad step; give a file of a run's bad-steps folder.")
    return told


def _size(out: object) -> float:
    if not isinstance(out, Tensor) or not out.numel():
        return 0.0
    return float(out.detach().abs().max()) if out.isfinite().all() else float("inf")


def _number(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
