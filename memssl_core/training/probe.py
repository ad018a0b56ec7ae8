"""The k-NN probe: what the teacher's embeddings are worth, asked of a few labelled pictures while it trains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from memssl_core.bundle.embed import embedded
from memssl_core.config import TrainConfig
from memssl_core.data.datasets import Images
from memssl_core.data.images import Transform
from memssl_core.data.streams import items_of
from memssl_core.data.views import MEAN, STD
from memssl_core.evaluation.health import rankme
from memssl_core.evaluation.knn import knn


def embedding_transform(config: TrainConfig) -> Transform:
    """Short side to 256/224 of the global view's side, centre crop: the published evaluation at any size."""
    side = config.global_size
    return Transform(resize_px=round(side * 256 / 224), crop_px=side, interpolation="bicubic", mean=MEAN, std=STD)


def embed_images(
    backbone: nn.Module, images: Images, ids: list[int], transform: Transform, device: torch.device
) -> tuple[Tensor, list[int]]:
    """[N, C] float32 embeddings on the CPU of the pictures that can be read, and their ids."""
    batches = [b for b in embedded(backbone, transform, items_of(images, ids), device=device) if b.items]
    rows = torch.cat([batch.embeddings.cpu() for batch in batches]) if batches else torch.empty(0, 0)
    return rows, [item.image_id for batch in batches for item in batch.items]


@dataclass(frozen=True)
class Probe:
    """A fixed sample of the training pictures, the last fifth asked of the rest. Labels serve this figure only."""

    images: Images
    ids: list[int]
    transform: Transform

    @classmethod
    def of(cls, images: Images, config: TrainConfig) -> Probe:
        order = np.random.Generator(np.random.Philox(key=[config.seed, 1 << 40])).permutation(len(images))
        return cls(images, [int(i) for i in order[: config.probe_images]], embedding_transform(config))

    def __call__(self, backbone: nn.Module, device: torch.device) -> tuple[dict[str, float], Tensor]:
        """`rankme` of the sample, and `knn_top1` (k 20, temperature 0.07, per cent) where its pictures have labels; and
        the embeddings [N, C] themselves."""
        rows, ids = embed_images(backbone, self.images, self.ids, self.transform, device)
        figures = {"rankme": rankme(rows)} if len(rows) else {}
        labelled = [(row, label) for row, i in enumerate(ids) if (label := self.images.label(i)) is not None]
        split = len(labelled) * 4 // 5
        if 0 < split < len(labelled):
            at, labels = (list(x) for x in zip(*labelled, strict=True))
            result = knn(rows[at[:split]], labels[:split], rows[at[split:]], labels[split:], k=(20,))
            figures["knn_top1"] = result.metrics["top1@20"]
        return figures, rows
