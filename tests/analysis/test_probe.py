"""Pictures of a probe, and what a model makes of them: one by one, in parts, and beside other threads."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from bundle.making import NOISE_SLOTS, SLOTS, small_memory, thumbnail
from PIL import Image

from analysis import Workbench
from analysis.probe import join, memory_slots, picture_names, probe, probe_features, probe_images
from memssl_core.bundle.thumbnails import thumbnail as thumbnail_of
from memssl_core.data.images import decode_image
from memssl_core.errors import DataError, ModelError
from memssl_core.model.features import n_prefix, walk
from memssl_core.sources import open_model


@pytest.fixture(scope="module")
def drawn():
    images = probe_images("drawn", 20)
    return [images.read(at) for at in range(len(images))]


@pytest.fixture(scope="module")
def without_blocks():
    return Workbench(open_model("random:resnet10t"))


def test_features_are_those_of_each_picture_alone(workbench, drawn):
    probed = probe_features(workbench, drawn)
    backbone = workbench.model.backbone
    assert len(probed) == 20 and probed.embedding.shape == (20, 32) and probed.layers.shape == (20, 3, 32)
    for at in (0, 7, 19):
        np.testing.assert_allclose(probed.embedding[at], workbench.embedding(drawn[at]), atol=1e-5)
        with torch.no_grad():
            blocks, _ = walk(backbone, workbench.model.transform(drawn[at])[None])
        for layer, tokens in enumerate(blocks):
            mean = sum(tokens.left[0, n_prefix(backbone) :]) / 64
            np.testing.assert_allclose(probed.layers[at, layer], mean, atol=1e-5)


def test_parts_join_to_the_whole(workbench, drawn):
    whole = probe_features(workbench, drawn)
    parts = join([probe_features(workbench, drawn[start : start + 7]) for start in (0, 7, 14)])
    np.testing.assert_allclose(parts.embedding, whole.embedding, atol=1e-5)
    np.testing.assert_allclose(parts.layers, whole.layers, atol=1e-5)


def test_nothing_has_no_features(workbench):
    assert len(probe_features(workbench, [])) == 0


def test_a_model_without_transformer_blocks(without_blocks, drawn):
    probed = join([probe_features(without_blocks, drawn[:2]), probe_features(without_blocks, drawn[2:3])])
    assert probed.embedding.shape == (3, 512) and probed.layers is None
    np.testing.assert_allclose(probed.embedding[2], without_blocks.embedding(drawn[2]), atol=1e-4)


def test_threads_share_a_model(workbench, drawn):
    alone = [probe_features(workbench, drawn[start : start + 5]) for start in (0, 5, 10, 15)]
    found = [None] * 4

    def ask(part):
        for _ in range(5):
            found[part] = probe_features(workbench, drawn[5 * part : 5 * part + 5])

    threads = [threading.Thread(target=ask, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, expected in zip(found, alone, strict=True):
        np.testing.assert_allclose(one.layers, expected.layers, atol=1e-5)


def test_probing_two_models_skips_what_cannot_be_read(workbench, without_blocks, photos):
    (photos / "dog" / "2.png").write_bytes(b"\x89PNG")
    told = []
    images = probe_images(str(photos))
    probed, kept = probe([workbench, without_blocks], images, emit=lambda event, **facts: told.append((event, facts)))
    assert kept == [0, 1, 3, 4] and [len(one) for one in probed] == [4, 4]
    np.testing.assert_allclose(probed[0].embedding[2], workbench.embedding(images.read(3)), atol=1e-5)
    assert told[0][0] == "skipped_image" and "2.png" in told[0][1]["message"]
    assert told[1] == ("progress", {"step": 5, "total": 5, "words": "embedding pictures"})


def test_too_few_pictures_or_a_wish_to_stop(workbench, photos):
    images = probe_images(str(photos))
    with pytest.raises(ModelError, match="Stopped"):
        probe([workbench], images, should_stop=lambda: True)
    for name in ("0", "1"):
        (photos / "cat" / f"{name}.png").write_bytes(b"")
    with pytest.raises(ModelError, match="Only 3 of 5 pictures can be read"):
        probe([workbench], images)


def test_the_drawn_pictures():
    images = probe_images()
    assert len(images) == 256 and images.uris[:2] == ("drawn:7:0", "drawn:7:1")
    assert list(probe_images("drawn", 9).uris) == list(images.uris[:9])


def test_of_a_larger_source_an_even_sample():
    every, some = probe_images("drawn:3:21"), probe_images("drawn:3:21", 7)
    assert len(every) == 21
    assert some.uris == tuple(f"drawn:3:{at}" for at in (0, 3, 6, 9, 12, 15, 18))
    assert [some.class_name(at) for at in range(7)] == [every.class_name(3 * at) for at in range(7)]
    assert some.read(2).tobytes() == every.read(6).tobytes()


@pytest.mark.parametrize(
    "spec, count, kind, words",
    [
        ("drawn", 3, ModelError, "3 pictures cannot be compared; ask for 4 to 10000"),
        ("drawn", 20_000, ModelError, "20000 pictures cannot be compared"),
        ("drawn:1:3", None, ModelError, "only 3 pictures"),
        ("memory", None, ModelError, "no memory"),
        ("no-such-folder", None, DataError, "no such folder"),
    ],
)
def test_probes_that_are_none(spec, count, kind, words):
    with pytest.raises(kind, match=words):
        probe_images(spec, count)


# Thumbnails of a memory


def test_a_memory_gives_each_picture_once():
    memory = small_memory()  # 20 pictures in 43 written slots
    assert memory_slots(memory).tolist() == list(range(20))
    assert memory_slots(memory, 5).tolist() == [0, 4, 8, 12, 16]
    images = probe_images("memory", memory=memory)
    assert images.uris == tuple(f"drawn:7:20/{at}" for at in range(20))
    assert images.read(6).tobytes() == decode_image(thumbnail(30)).tobytes()


def test_slots_of_unknown_pictures_are_pictures_of_their_own():
    memory = replace(small_memory(), uri=[None] * SLOTS, image_id=np.r_[np.full(10, -2), np.full(40, 3)])
    assert memory_slots(memory).tolist() == list(range(11))
    assert len({*picture_names(memory, np.arange(SLOTS))}) == 11
    assert probe_images("memory", memory=memory).uris[10] == "slot 10"


def test_thumbnails_that_cannot_be_read_are_left_out():
    shown = [thumbnail(slot) for slot in range(SLOTS)]
    shown[0], shown[1], shown[2] = b"", b"no picture", thumbnail(2)[:30]
    shown[3] = thumbnail_of(Image.new("RGB", (400, 40)), side_px=48, max_bytes=4096)  # 48×5 px
    memory = replace(small_memory(), thumbnails=shown)
    assert memory_slots(memory).tolist() == [*range(4, 21)]  # slot 20 shows the picture of slot 0


def test_a_memory_without_thumbnails():
    memory = replace(small_memory(), thumbnails=[b""] * SLOTS)
    assert len(memory_slots(memory)) == 0
    with pytest.raises(ModelError, match="only 0 pictures"):
        probe_images("memory", memory=memory)


def test_noise_is_no_picture():
    memory = small_memory()
    assert memory_slots(replace(memory, uri=[f"u{slot}" for slot in range(SLOTS)])).max() == SLOTS - NOISE_SLOTS - 1
