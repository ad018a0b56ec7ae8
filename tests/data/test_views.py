from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from memssl_core.config import PRESETS
from memssl_core.data.datasets import Images, open_images
from memssl_core.data.views import StepBatches, cut_views, normalised, random_box, view_loader
from memssl_core.errors import ImageError

CONFIG = replace(PRESETS["smoke"], batch_size=8)


def photo(width: int = 96, height: int = 80) -> Image.Image:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def test_a_view_is_a_function_of_seed_epoch_image_and_crop():
    def key(config=CONFIG, epoch=3, image_id=5):
        views, boxes = cut_views(photo(), config, epoch=epoch, image_id=image_id)
        return [v.tobytes() for v in views], boxes

    assert key() == key()
    first = key()[0]
    for other in (key(epoch=4), key(image_id=6), key(config=replace(CONFIG, seed=1))):
        assert all(a != b for a, b in zip(first, other[0], strict=True))
    # one local view more leaves the others as they were
    more = key(config=replace(CONFIG, local_views=3))
    assert more[0][:4] == first


def test_views_have_their_sizes_and_boxes_lie_in_the_picture():
    views, boxes = cut_views(photo(), CONFIG, epoch=0, image_id=0)
    assert [v.shape for v in views] == [(3, 64, 64)] * 2 + [(3, 32, 32)] * 2
    assert all(v.dtype == np.uint8 for v in views)
    for (x0, y0, x1, y1), (low, high) in zip(boxes, [CONFIG.global_scale] * 2 + [CONFIG.local_scale] * 2, strict=True):
        assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
        assert 0.9 * low <= (x1 - x0) * (y1 - y0) <= min(1.0, 1.1 * high)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**31))
def test_boxes_of_any_picture(width, height, seed):
    x0, y0, x1, y1 = random_box((width, height), (0.05, 0.32), np.random.default_rng(seed))
    assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height


def test_boxes_are_distributed_as_torchvisions():
    rng, size = np.random.default_rng(0), (120, 90)
    torch.manual_seed(0)
    ours = np.array([random_box(size, (0.32, 1.0), rng) for _ in range(4000)], float)
    theirs = []
    blank = torch.empty(3, 90, 120)
    for _ in range(4000):
        top, left, h, w = RandomResizedCrop.get_params(blank, [0.32, 1.0], [3 / 4, 4 / 3])
        theirs.append((left, top, left + w, top + h))
    theirs = np.array(theirs, float)
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=1.5)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), atol=1.5)


def test_augmentations_come_with_the_published_probabilities():
    """Grey 0.2 for every view; solarised only in the second global one (a flat bright picture turns dark)."""
    bright = Image.new("RGB", (64, 64), (250, 250, 250))
    colourful = Image.new("RGB", (64, 64), (200, 60, 60))
    draws = 900
    dark, grey = np.zeros(4), np.zeros(4)
    for i in range(draws):
        dark += [v.mean() < 128 for v in cut_views(bright, CONFIG, epoch=0, image_id=i)[0]]
        grey += [bool((v[0] == v[1]).all()) for v in cut_views(colourful, CONFIG, epoch=0, image_id=i)[0]]
    np.testing.assert_allclose(grey / draws, 0.2, atol=0.05)
    np.testing.assert_allclose(dark / draws, [0, 0.2, 0, 0], atol=0.05)


def test_normalised_takes_mean_and_deviation_out():
    views = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    expected = torch.tensor(
        [[-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225], [0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225]]
    )
    torch.testing.assert_close(normalised(views)[:, :, 0, 0], expected)


def test_each_epoch_reads_every_picture_once_and_any_start_continues_the_same_order():
    batches = list(StepBatches(21, 4, 0, 0, 10))
    for epoch in (0, 1):
        ids = [i for batch in batches[5 * epoch : 5 * epoch + 5] for e, i in batch if e == epoch]
        assert len(ids) == len(set(ids)) == 20
    assert batches[0] != batches[5]
    assert list(StepBatches(21, 4, 0, 7, 10)) == batches[7:]


def test_loader_gives_the_same_batches_whatever_the_workers():
    images = open_images("drawn:0:24:64")
    by_workers = [list(view_loader(images, replace(CONFIG, workers=n), start=1, stop=5)) for n in (0, 2)]
    for a, b in zip(*by_workers, strict=True):
        assert torch.equal(a.global_views, b.global_views) and torch.equal(a.local_views, b.local_views)
        assert torch.equal(a.image_ids, b.image_ids) and torch.equal(a.boxes, b.boxes)
    assert by_workers[0][0].global_views.shape == (2, 8, 3, 64, 64)
    assert by_workers[0][0].local_views.shape == (2, 8, 3, 32, 32)


def test_unreadable_pictures_are_left_out_and_named():
    good = open_images("drawn:0:8:64")

    def read(i: int) -> Image.Image:
        if i == 3:
            raise ImageError("photo-3.png could not be read.")
        return good.read(i)

    images = Images("test", good.uris, good.labels, good.class_names, read)
    (batch,) = view_loader(images, CONFIG, start=0, stop=1)
    assert batch.skipped == (f"{good.uris[3]}: photo-3.png could not be read.",)
    assert sorted(batch.image_ids.tolist()) == [0, 1, 2, 4, 5, 6, 7] and batch.global_views.shape[1] == 7


def test_boxes_are_those_of_the_second_global_view():
    images = open_images("drawn:0:8:64")
    (batch,) = view_loader(images, CONFIG, start=0, stop=1)
    _, boxes = cut_views(images.read(int(batch.image_ids[0])), CONFIG, epoch=0, image_id=int(batch.image_ids[0]))
    np.testing.assert_allclose(batch.boxes[0], boxes[1], rtol=1e-6)
    assert math.isfinite(batch.boxes.sum())
