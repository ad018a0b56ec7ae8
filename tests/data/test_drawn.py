from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from memssl_core.data.drawn import CLASS_NAMES, FAMILIES, draw, sheet
from memssl_core.data.drawn.brush import Brush, Canvas, Layer
from memssl_core.data.drawn.dice import Dice
from memssl_core.errors import DataError


@pytest.fixture(scope="module")
def drawings():
    return [draw(11, index) for index in range(480)]


def fingerprint(seed: int, index: int) -> str:
    drawing = draw(seed, index)
    return hashlib.sha256(drawing.image.tobytes() + drawing.mask.tobytes() + bytes([drawing.label])).hexdigest()


def test_a_drawing_says_what_it_shows(drawings):
    for drawing in drawings[:16]:
        assert drawing.image.shape == (96, 96, 3) and drawing.image.dtype == np.uint8
        assert drawing.mask.shape == (96, 96) and drawing.mask.dtype == bool
        assert CLASS_NAMES[drawing.label] == drawing.class_name


def test_two_classes_of_each_family():
    assert [len(painters) for painters in FAMILIES.values()] == [2, 2, 2, 2]
    assert len(set(CLASS_NAMES)) == 8 and "sailing boat" in CLASS_NAMES


def test_same_seed_and_index_is_the_same_picture_in_another_process():
    script = (
        "import hashlib; from memssl_core.data.drawn import draw; d = draw(7, 3);"
        "print(hashlib.sha256(d.image.tobytes() + d.mask.tobytes() + bytes([d.label])).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert fingerprint(7, 3) == fingerprint(7, 3) == other.stdout.strip()


def test_order_of_drawing_does_not_matter():
    forward = [fingerprint(5, index) for index in range(4)]
    assert [fingerprint(5, index) for index in reversed(range(4))] == forward[::-1]


def test_every_seed_and_index_is_another_picture():
    assert len({fingerprint(seed, index) for seed in range(5) for index in range(8)}) == 40
    assert fingerprint(2, 5) != fingerprint(5, 2)


def test_classes_are_balanced():
    labels = np.array([draw(3, index, 16).label for index in range(800)])
    assert (np.sort(labels.reshape(-1, 8), axis=1) == np.arange(8)).all()
    assert len({tuple(row) for row in labels.reshape(-1, 8)}) > 90  # the order says nothing about the next eight


def test_the_object_is_seen_and_stands_out(drawings):
    cover = np.array([drawing.mask.mean() for drawing in drawings])
    assert cover.min() > 0.05 and cover.max() < 0.8
    differences = [
        np.abs(drawing.image[drawing.mask].mean(axis=0) - drawing.image[~drawing.mask].mean(axis=0)).max()
        for drawing in drawings
    ]
    assert np.median(differences) > 25 and np.mean(np.array(differences) > 8) > 0.95


@pytest.mark.parametrize("index", range(8))
def test_another_size_is_the_same_scene(index):
    small, large = draw(1, index, 96), draw(1, index, 192)
    shrunk = np.asarray(Image.fromarray(large.image).reduce(2), dtype=np.float64)
    assert np.abs(shrunk - small.image).mean() < 6
    coarse = large.mask.reshape(96, 2, 96, 2).mean(axis=(1, 3)) >= 0.5
    assert (coarse & small.mask).sum() / (coarse | small.mask).sum() > 0.93


def test_neither_mean_colour_nor_border_tells_the_class(drawings):
    labels = np.array([drawing.label for drawing in drawings])
    images = np.stack([drawing.image for drawing in drawings]).astype(np.float64)
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1)[:, ::4]
    masks = np.stack([drawing.mask for drawing in drawings]).reshape(480, 12, 8, 12, 8).mean(axis=(2, 4))
    assert nearest_neighbour_accuracy(images.mean(axis=(1, 2)), labels) < 1 / 8 + 0.1
    assert nearest_neighbour_accuracy(border.reshape(480, -1), labels) < 1 / 8 + 0.1
    assert nearest_neighbour_accuracy(masks.reshape(480, -1), labels) > 0.4  # while the shape does tell


def nearest_neighbour_accuracy(features: np.ndarray, labels: np.ndarray, k: int = 10) -> float:
    """Leave-one-out: the commonest label among the k nearest others."""
    right = 0
    for row, label in enumerate(labels):
        distances = ((features - features[row]) ** 2).sum(axis=1)
        distances[row] = np.inf
        right += np.bincount(labels[np.argsort(distances)[:k]], minlength=8).argmax() == label
    return right / len(labels)


@pytest.mark.parametrize("arguments", [(-1, 0), (0, -1), (2**64, 0), (0, 0, 15)])
def test_impossible_pictures_are_refused(arguments):
    with pytest.raises(DataError, match="Drawn picture"):
        draw(*arguments)


def test_a_sheet_shows_the_first_pictures():
    page = sheet(4, 5, 32)  # three columns, two rows, gaps of one pixel
    assert page.size == (100, 67)
    assert (np.asarray(page)[34:66, 1:33] == draw(4, 3, 32).image).all()
    with pytest.raises(DataError, match="at least one"):
        sheet(4, 0)


def test_dice_streams_are_independent_and_numbers_stay_in_range():
    assert Dice(1, 2, 3).number() == Dice(1, 2, 3).number() != Dice(1, 2, 4).number()
    dice = Dice(0, 0, 0)
    assert {dice.whole(3, 5) for _ in range(200)} == {3, 4, 5}
    assert all(-2 <= dice.middling(-2, 1) < 1 for _ in range(200))
    assert sorted(dice.shuffled(20)) == list(range(20))


def test_the_brush_maps_object_coordinates_to_pixels():
    brush = Brush(Canvas(100, (0, 0, 0)), np.eye(2) * 50, np.array([50.0, 50.0]))
    assert np.allclose(brush.pixels([(-1, -1), (1, 0)]), [(0, 0), (100, 50)])
    arm = brush.at((0.5, 0.0), turn=np.pi / 2)  # x now points down
    assert np.allclose(arm.pixels([(0, 0), (0.4, 0)]), [(75, 50), (75, 70)])


def test_what_is_in_front_is_not_the_object():
    canvas = Canvas(100, (0, 0, 0))
    brush = Brush(canvas, np.eye(2) * 50, np.array([50.0, 50.0]))
    for layer, left in ((Layer.BACKDROP, -1.0), (Layer.OBJECT, -0.5), (Layer.FRONT, 0.0)):
        canvas.start(layer)
        brush.box(left, -0.8, 0.5, 0.8, (200, 200, 200))
    seen = np.asarray(canvas.object_mask())[50] == 255
    assert not seen[:24].any() and seen[26:49].all() and not seen[51:].any()


def test_marks_stay_inside_their_shape():
    canvas = Canvas(100, (0, 0, 0))
    brush = Brush(canvas, np.eye(2) * 50, np.array([50.0, 50.0]))
    stripe = np.array([(-2.0, -0.1), (2.0, -0.1), (2.0, 0.1), (-2.0, 0.1)])
    brush.box(-0.5, -0.5, 0.5, 0.5, (255, 0, 0), marks=[stripe], mark_colour=(0, 255, 0))
    row = np.asarray(canvas.picture)[50]
    assert (row[30:70] == (0, 255, 0)).all() and not row[:24].any() and not row[77:].any()
