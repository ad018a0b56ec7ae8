"""What a training run is made of: one frozen dataclass, and presets that are values of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from memssl_core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a run. The defaults are the published ViT-S/16 run (official README and code defaults)."""

    backbone: str = "vit_small_patch16_224"
    """any timm model that gives one embedding of a picture and reads both sizes of views"""
    patch_size: int | None = None
    """pixels; None keeps the backbone's own, as do the next three; families have some of the four or none"""
    width: int | None = None
    """embedding width C"""
    depth: int | None = None
    """transformer blocks"""
    attention_heads: int | None = None
    drop_path: float = 0.1
    """student's stochastic depth at the last transformer block, rising linearly from 0; some families have none"""
    patch_drop: float = 0.0
    """share of patches the student does not see in its global views (not in the published runs)"""
    checkpoint_blocks: bool = False
    """compute the student's blocks again in the backward pass: less memory, the same gradients, more time"""
    head_hidden: int = 2048
    projection_dim: int = 256
    head_batch_norm: bool = False
    """helps tiny models on small data to start (docs/METHOD.md); off in the published runs"""

    memory_slots: int = 131_072
    block_size: int = 16_384
    student_temperature: float = 0.1
    teacher_temperature_start: float = 0.04
    teacher_temperature: float = 0.07
    teacher_temperature_warmup_epochs: float = 30.0

    global_size: int = 224
    global_scale: tuple[float, float] = (0.32, 1.0)
    """share of the picture's area a global crop covers"""
    local_views: int = 10
    local_size: int = 96
    local_scale: tuple[float, float] = (0.05, 0.32)
    colour_jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    """largest change of brightness, contrast, saturation and hue; stronger where colour gives a picture away"""
    grey: float = 0.2
    """share of views without colour"""
    blur_radius: tuple[float, float] = (0.1, 2.0)
    """pixels of the view"""

    batch_size: int = 128
    """pictures of one optimizer step, over all processes and micro-batches"""
    accumulate: int = 1
    """micro-batches whose gradients make one optimizer step; batch_size is a multiple of it"""
    epochs: float = 800.0
    steps: int | None = None
    """length of the run in optimizer steps, in place of `epochs`"""
    optimizer: Literal["adamw", "lars", "sgd"] = "adamw"
    """adamw for transformers; lars for ResNets with large batches"""
    sgd_momentum: float = 0.9
    """of lars and sgd; adamw has its own (0.9, 0.999)"""
    lr: float = 5e-4
    """for 256 images; scaled by batch_size / 256"""
    min_lr: float = 1e-6
    """reached at the end, not scaled"""
    warmup_epochs: float = 0.0
    weight_decay: float = 0.04
    weight_decay_end: float = 0.4
    momentum: float = 0.992
    """weight of the old teacher in its update"""
    momentum_end: float = 1.0
    clip_norm: float = 3.0
    """for each parameter tensor on its own"""

    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast on CUDA where supported, else fp32"""
    threads: int | None = None
    """CPU threads of the training process; None leaves torch's choice"""
    workers: int = 4
    """processes that read pictures and cut views"""
    log_every: int = 50
    """steps"""
    save_every: int = 1_000
    probe_every: int = 10_000
    probe_images: int = 2_500
    """pictures of the k-NN probe, a fifth of them queries"""
    snapshot_every: int = 10_000
    """steps between two snapshots of the memory and the pinned pictures"""

    def __post_init__(self) -> None:
        if self.block_size > self.memory_slots:
            raise ConfigError(
                f"block_size {self.block_size} is larger than memory_slots {self.memory_slots}; "
                f"try block_size {max(1, self.memory_slots // 8)}."
            )
        sizes = ("block_size", "batch_size", "accumulate", "global_size", "local_size", "head_hidden", "projection_dim")
        for name in (*sizes, "log_every", "save_every", "probe_every", "probe_images", "snapshot_every"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("local_views", "workers", "warmup_epochs", "weight_decay", "weight_decay_end", "min_lr"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _require(self.threads is None or self.threads >= 1, "threads", self.threads, "at least 1")
        for name in ("student_temperature", "teacher_temperature", "teacher_temperature_start", "lr", "clip_norm"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        for name in ("drop_path", "patch_drop", "sgd_momentum"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "at least 0 and below 1")
        for name in ("momentum", "momentum_end", "grey"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "between 0 and 1")
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            _require(
                0 < low <= high <= 1, name, getattr(self, name), "two rising shares of the area above 0 and up to 1"
            )
        *colour, hue = self.colour_jitter
        rule = "four changes: brightness, contrast and saturation between 0 and 1, hue up to 0.5"
        _require(all(0 <= x <= 1 for x in colour) and 0 <= hue <= 0.5, "colour_jitter", self.colour_jitter, rule)
        _require(self.steps is None or self.steps >= 1, "steps", self.steps, "at least 1")
        _require(self.steps is not None or self.epochs > 0, "epochs", self.epochs, "above 0")
        if self.batch_size % self.accumulate:
            raise ConfigError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}.")
        if self.head_batch_norm and self.batch_size // self.accumulate < 2:
            raise ConfigError(
                "head_batch_norm needs at least 2 pictures in a micro-batch (batch_size / accumulate); "
                "raise batch_size or switch head_batch_norm off."
            )

    @property
    def views(self) -> int:
        """V: student views per picture, the two global ones first."""
        return 2 + self.local_views

    def model_args(self) -> dict[str, int]:
        """What timm's create_model is offered beside the backbone's name; `Pair.model_args` is what the family took."""
        named = {
            "img_size": self.global_size,
            "patch_size": self.patch_size,
            "embed_dim": self.width,
            "depth": self.depth,
            "num_heads": self.attention_heads,
        }
        return {name: value for name, value in named.items() if value is not None}


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise ConfigError(f"{name} is {value}; it must be {rule}.")


_TINY: dict[str, Any] = {
    "backbone": "vit_tiny_patch16_224",
    "patch_size": 8,
    "head_batch_norm": True,
    "global_size": 64,
    "local_size": 32,
    "local_scale": (0.1, 0.32),
    "blur_radius": (0.1, 0.6),
    "teacher_temperature": 0.04,
    "teacher_temperature_warmup_epochs": 0.0,
    "drop_path": 0.0,
    "weight_decay_end": 0.04,
    "clip_norm": 3.0,
}

PRESETS: dict[str, TrainConfig] = {
    "vit-s16-800ep": TrainConfig(),
    "vit-b16-400ep": TrainConfig(
        backbone="vit_base_patch16_224",
        lr=7.5e-4,
        min_lr=2e-6,
        warmup_epochs=10.0,
        momentum=0.996,
        teacher_temperature_warmup_epochs=50.0,
        epochs=400.0,
    ),
    # Source: the defaults of the authors' code, the ResNet-50-type recipe of their earlier CARP; no published run used
    # them. batch_size is ours (32 a GPU there, the number of GPUs open); their ResNet has no stochastic depth.
    "resnet50-100ep": TrainConfig(
        backbone="resnet50",
        drop_path=0.0,
        head_batch_norm=True,
        memory_slots=65_536,
        block_size=1024,
        global_scale=(0.2, 1.0),
        local_views=6,
        local_scale=(0.05, 0.2),
        epochs=100.0,
        optimizer="lars",
        lr=0.3,
        min_lr=4.8e-3,
        warmup_epochs=10.0,
        weight_decay=1e-6,
        weight_decay_end=1e-6,
        momentum=0.99,
    ),
    "demo": TrainConfig(
        **_TINY,
        width=128,
        depth=6,
        attention_heads=4,
        patch_drop=0.5,
        local_views=2,
        colour_jitter=(0.4, 0.4, 0.4, 0.25),
        grey=0.3,
        head_hidden=512,
        memory_slots=4096,
        block_size=512,
        batch_size=64,
        steps=3200,
        lr=6e-3,
        min_lr=7.5e-5,
        warmup_epochs=0.2,
        momentum=0.98,
        momentum_end=0.996,
        workers=1,
        log_every=5,
        save_every=100,
        probe_every=100,
        snapshot_every=100,
    ),
    "smoke": TrainConfig(
        **_TINY,
        width=64,
        depth=2,
        attention_heads=2,
        local_views=2,
        head_hidden=128,
        projection_dim=64,
        memory_slots=256,
        block_size=64,
        batch_size=16,
        steps=60,
        lr=8e-3,
        min_lr=1e-4,
        momentum=0.98,
        momentum_end=0.996,
        workers=0,
        log_every=1,
        save_every=10,
        probe_every=60,
        probe_images=250,
        snapshot_every=10,
    ),
}
