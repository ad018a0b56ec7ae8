"""Multi-crop views: two global and several local crops of a picture, each a function of (seed, epoch, image id, crop).

The augmentations are the published ones, in their order, on PIL pictures: random resized crop (bicubic), flip, colour
jitter in random order, grey, blur, solarise (official code; probabilities in docs/METHOD.md).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as F

from memssl_core.config import TrainConfig
from memssl_core.data.datasets import Images
from memssl_core.errors import MemsslError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BLUR = {0: 1.0, 1: 0.1, "local": 0.5}
_SOLARISE = {0: 0.0, 1: 0.2, "local": 0.0}


@dataclass(frozen=True)
class Batch:
    """Views of B pictures, bytes until they are on the training device."""

    global_views: Tensor
    """[2, B, 3, H, W] uint8"""
    local_views: Tensor
    """[V-2, B, 3, h, w] uint8"""
    boxes: Tensor
    """[B, 4] crop of the second global view (its key goes into the memory), x0, y0, x1, y1 in 0..1"""
    image_ids: Tensor
    """[B] int64"""
    skipped: tuple[str, ...]
    """what was wrong with the pictures of this batch that could not be read"""

    def chunks(self, count: int) -> list[Batch]:
        """The same pictures in `count` parts, one after the other; none of them empty."""
        bounds = [len(self.image_ids) * i // count for i in range(count + 1)]
        return [
            Batch(
                self.global_views[:, a:b], self.local_views[:, a:b], self.boxes[a:b], self.image_ids[a:b], self.skipped
            )
            for a, b in zip(bounds, bounds[1:], strict=False)
            if a < b
        ]


def cut_views(image: Image.Image, config: TrainConfig, *, epoch: int, image_id: int) -> tuple[list[np.ndarray], list]:
    """V uint8 [3, side, side] views, the global ones first, and their crop boxes (x0, y0, x1, y1) in 0..1."""
    views, boxes = [], []
    for crop in range(config.views):
        kind = crop if crop < 2 else "local"
        rng = np.random.Generator(np.random.Philox(key=[config.seed, epoch], counter=[0, 0, image_id, crop]))
        side, scale = (
            (config.local_size, config.local_scale) if kind == "local" else (config.global_size, config.global_scale)
        )
        box = random_box(image.size, scale, rng)
        view = image.resize((side, side), Image.Resampling.BICUBIC, box=box)
        view = _recolour(view, rng, config, blur=_BLUR[kind], solarise=_SOLARISE[kind])
        views.append(np.asarray(view).transpose(2, 0, 1))
        boxes.append((box[0] / image.width, box[1] / image.height, box[2] / image.width, box[3] / image.height))
    return views, boxes


def random_box(
    size: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) px covering a share `scale` of the area, aspect 3/4 to 4/3; else the largest central such box.

    Source: the rule of torchvision's RandomResizedCrop (ten tries, log-uniform aspect).
    """
    width, height = size
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(rng.integers(0, width - w, endpoint=True)), int(rng.integers(0, height - h, endpoint=True))
            return x, y, x + w, y + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    x, y = (width - w) // 2, (height - h) // 2
    return x, y, x + w, y + h


def _recolour(
    view: Image.Image, rng: np.random.Generator, config: TrainConfig, *, blur: float, solarise: float
) -> Image.Image:
    if rng.random() < 0.5:
        view = ImageOps.mirror(view)
    if rng.random() < 0.8:
        *by, hue = config.colour_jitter
        strengths = [*(rng.uniform(1 - change, 1 + change) for change in by), rng.uniform(-hue, hue)]
        jitter = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
        for i in rng.permutation(4):
            view = jitter[i](view, float(strengths[i]))
    if rng.random() < config.grey:
        view = view.convert("L").convert("RGB")
    if rng.random() < blur:
        view = view.filter(ImageFilter.GaussianBlur(rng.uniform(*config.blur_radius)))
    if rng.random() < solarise:
        view = ImageOps.solarize(view, 128)
    return view


def normalised(views: Tensor) -> Tensor:
    """[..., 3, H, W] uint8 -> float32 with the ImageNet mean and deviation taken out."""
    mean, std = (torch.tensor(x, device=views.device).view(3, 1, 1) for x in (MEAN, STD))
    return (views.float() / 255 - mean) / std


class ViewDataset(Dataset):
    """Items (epoch, image id) -> views, boxes, id, or the sentence that says why the picture cannot be read."""

    def __init__(self, images: Images, config: TrainConfig) -> None:
        self.images, self.config = images, config

    def __getitem__(self, item: tuple[int, int]):
        epoch, image_id = item
        try:
            image = self.images.read(image_id)
        except MemsslError as reason:
            return str(reason)
        return *cut_views(image, self.config, epoch=epoch, image_id=image_id), image_id


@dataclass(frozen=True)
class StepBatches:
    """Which (epoch, image id) pairs each step reads: a fresh permutation every epoch, the last odd batch left out.

    Of `parts` processes each reads its `part` of every batch, neighbours in it.
    """

    images: int
    batch_size: int
    seed: int
    start: int
    stop: int
    part: int = 0
    parts: int = 1

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch, known, order = self.images // self.batch_size, -1, []
        for step in range(self.start, self.stop):
            epoch, position = divmod(step, per_epoch)
            if epoch != known:
                known, order = (
                    epoch,
                    np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(self.images),
                )
            batch = order[position * self.batch_size : (position + 1) * self.batch_size]
            yield [(epoch, int(i)) for i in np.array_split(batch, self.parts)[self.part]]

    def __len__(self) -> int:
        return self.stop - self.start


def collate(items: list) -> Batch:
    """The pictures of a batch that could be read; it may be empty."""
    read, skipped = [i for i in items if not isinstance(i, str)], tuple(i for i in items if isinstance(i, str))
    if not read:
        nothing = torch.empty(2, 0, 3, 1, 1, dtype=torch.uint8)
        return Batch(nothing, nothing[:0], torch.empty(0, 4), torch.empty(0, dtype=torch.int64), skipped)
    views, boxes, ids = zip(*read, strict=True)
    by_view = [np.stack(view) for view in zip(*views, strict=True)]
    empty = np.empty((0, len(ids), 3, 1, 1), np.uint8)
    return Batch(
        global_views=torch.from_numpy(np.stack(by_view[:2])),
        local_views=torch.from_numpy(np.stack(by_view[2:]) if by_view[2:] else empty),
        boxes=torch.tensor([box[1] for box in boxes], dtype=torch.float32),
        image_ids=torch.tensor(ids),
        skipped=skipped,
    )


def view_loader(
    images: Images, config: TrainConfig, *, start: int, stop: int, part: int = 0, parts: int = 1
) -> DataLoader:
    """Batches of the steps start..stop-1, or one part of each; the same whatever the number of workers."""
    return DataLoader(
        ViewDataset(images, config),
        batch_sampler=StepBatches(len(images), config.batch_size, config.seed, start, stop, part, parts),
        collate_fn=collate,
        num_workers=config.workers,
        worker_init_fn=_quiet_worker,
        prefetch_factor=4 if config.workers else None,
        pin_memory=torch.cuda.is_available(),
    )


def _quiet_worker(_: int) -> None:
    import signal

    # Ctrl-C and torchrun signal the whole group; the trainer decides when to end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    torch.set_num_threads(1)
