"""A memory for any model, against the model asked picture by picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bundle.making import small_bundle
from PIL import Image

from analysis import Workbench
from memssl_core.bundle.layout import open_bundle
from memssl_core.bundle.remember import remember
from memssl_core.data.images import Transform
from memssl_core.data.streams import open_stream
from memssl_core.errors import DataError
from memssl_core.sources import open_model


@pytest.fixture
def folder(tmp_path):
    """90 pictures in two classes, one of them unreadable."""
    for i in range(90):
        path = tmp_path / "pictures" / ("cats" if i % 3 else "dogs") / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 255, (8, 12 + i % 7, 3), np.uint8)
        Image.fromarray(noise).resize((80 + i % 7, 60)).save(path)
    (tmp_path / "pictures" / "cats" / "004.png").write_bytes(b"no picture")
    return tmp_path / "pictures"


def with_head(tmp_path):
    small_bundle().save(tmp_path / "model")
    return open_model(str(tmp_path / "model"))


def without_head(tmp_path):
    return open_model("random:resnet10t@1")


@pytest.mark.parametrize("make", [with_head, without_head])
def test_a_memory_holds_what_the_model_says_of_each_picture(make, folder, tmp_path):
    model, events = make(tmp_path), []
    memory = remember(
        model.backbone,
        model.head,
        model.transform,
        open_stream(str(folder)),
        emit=lambda event, *, step, **facts: events.append((event, step, facts)),
    )
    assert memory is not None and memory.slots == memory.written == 89 and memory.cursor == 0
    skipped = [facts for event, _, facts in events if event == "skipped_image"]
    assert len(skipped) == 1 and "004.png" in skipped[0]["message"]
    assert [(step, facts["total"]) for event, step, facts in events if event == "progress"][-1] == (90, 90)
    workbench = Workbench(model)
    for slot in (0, 41, 88):
        row = memory.rows(np.array([slot]))[0]
        picture = folder / row["uri"]
        assert row["class_name"] == picture.parent.name and memory.thumbnail(slot)[:4] == b"RIFF"
        with Image.open(picture) as opened:
            np.testing.assert_allclose(memory.box[slot], model.transform.crop_box(*opened.size), atol=1e-6)
        embedding = workbench.embedding(picture)
        known = embedding / np.linalg.norm(embedding) if model.head is None else workbench.projection(picture)
        np.testing.assert_allclose(memory.vectors[slot], known, atol=1e-4)
        if model.head is not None:
            np.testing.assert_allclose(memory.embeddings[slot], embedding, rtol=1e-3, atol=1e-4)
    model.as_bundle(memory).save(tmp_path / "given")
    again = Workbench(open_model(str(tmp_path / "given")))
    found = again.neighbours(folder / "cats" / "001.png", k=1)
    assert found.scores[0] == pytest.approx(1, abs=1e-3)
    if model.head is None:
        assert found.space == "embedding" and found.rows[0]["uri"] == "cats/001.png"


def test_of_too_many_pictures_a_seeded_sample_is_taken(folder, tmp_path):
    model = with_head(tmp_path)
    take = lambda seed: remember(
        model.backbone, model.head, model.transform, open_stream(str(folder)), slots=10, seed=seed
    ).image_id.tolist()
    assert take(2) == take(2) == sorted(take(2)) and take(2) != take(3) and len(set(take(2))) == 10


def test_nothing_readable_and_being_stopped(folder, tmp_path):
    model, stream = with_head(tmp_path), open_stream(str(folder))
    assert remember(model.backbone, None, model.transform, stream, should_stop=lambda: True) is None
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"")
    with pytest.raises(DataError, match="none of its pictures"):
        remember(model.backbone, None, model.transform, open_stream(str(tmp_path / "bad")))
    with pytest.raises(DataError, match="0 slots"):
        remember(model.backbone, None, model.transform, stream, slots=0)


def test_equal_pictures_give_an_equal_bundle(folder, tmp_path):
    model = with_head(tmp_path)

    def give(out):
        stream = open_stream(str(folder))
        model.as_bundle(remember(model.backbone, model.head, model.transform, stream)).save(tmp_path / out)
        return open_bundle(tmp_path / out).bundle_hash

    assert give("one") == give("two")


def test_threads_and_generators_are_left_alone(folder, tmp_path):
    model, state = with_head(tmp_path), torch.get_rng_state()
    remember(model.backbone, model.head, model.transform, open_stream(str(folder)), slots=5)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size, mode", [((300, 200), "center"), ((200, 300), "center"), ((300, 200), "squash")])
def test_the_box_is_what_the_model_saw(size, mode):
    """A picture whose pixels tell where they lie, sent through the transform."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    picture = Image.fromarray((255 * np.dstack([x, y, 0 * x])).astype(np.uint8))
    transform = Transform(128, 112, mean=(0, 0, 0), std=(1, 1, 1), crop_mode=mode)
    seen = transform(picture)[:2].numpy()
    x0, y0, x1, y1 = transform.crop_box(*size)
    edges = [seen[0].min(), seen[1].min(), seen[0].max(), seen[1].max()]
    np.testing.assert_allclose(edges, [x0, y0, x1, y1], atol=0.02)
