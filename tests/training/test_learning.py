"""Without being told what pictures show, a small model comes to tell their classes apart."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from memssl_core.config import PRESETS
from memssl_core.data.datasets import Images, open_images
from memssl_core.data.views import view_loader
from memssl_core.evaluation.knn import knn
from memssl_core.training.probe import embed_images, embedding_transform
from memssl_core.training.state import TrainState
from memssl_core.training.step import train_step

CLASSES = ("car", "sailing boat", "tree", "lighthouse")
CONFIG = replace(
    PRESETS["demo"],
    width=96,
    depth=4,
    attention_heads=3,
    head_hidden=384,
    projection_dim=128,
    memory_slots=1024,
    block_size=256,
    batch_size=16,
    steps=600,
    lr=16e-3,
    momentum=0.95,
    teacher_temperature_start=0.025,
    teacher_temperature=0.025,
    global_scale=(0.5, 1.0),
    local_scale=(0.2, 0.5),
    colour_jitter=(0.4, 0.4, 0.4, 0.25),
    grey=0.3,
    workers=0,
    seed=1,
)


def of_four_classes(first: int, last: int) -> Images:
    gallery = open_images(f"drawn:1:{last}:64")
    ids = tuple(i for i in range(first, last) if gallery.class_name(i) in CLASSES)
    labels = np.array([CLASSES.index(str(gallery.class_name(i))) for i in ids])
    drawn_once = cache(lambda row: gallery.read(ids[row]))
    return Images("four classes", tuple(gallery.uris[i] for i in ids), labels, CLASSES, drawn_once)


def knn_top1(backbone, held_out: Images) -> float:
    rows, ids = embed_images(
        backbone, held_out, list(range(len(held_out))), embedding_transform(CONFIG), torch.device("cpu")
    )
    labels, split = [held_out.label(i) for i in ids], len(ids) * 2 // 3
    return knn(rows[:split], labels[:split], rows[split:], labels[split:], k=(20,)).metrics["top1@20"]


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_tiny_training_learns(one_thread):
    pictures, held_out = of_four_classes(0, 8_000), of_four_classes(8_000, 14_400)
    state = TrainState(CONFIG, pictures)
    untrained = knn_top1(state.pair.teacher.backbone, held_out)
    for batch in view_loader(pictures, CONFIG, start=0, stop=state.steps):
        train_step(state, batch, with_gauges=False)
        state.step += 1
    trained = knn_top1(state.pair.teacher.backbone, held_out)
    print(f"k-NN top-1 of {len(CLASSES)} classes: untrained {untrained:.1f} %, trained {trained:.1f} %")
    assert trained >= untrained + 10
