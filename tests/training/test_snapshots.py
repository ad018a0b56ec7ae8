from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import pytest
import safetensors.numpy
import timm
import torch
from PIL import Image

from memssl_core.config import PRESETS
from memssl_core.data.datasets import Images, open_images
from memssl_core.data.images import decode_image
from memssl_core.data.views import Batch, view_loader
from memssl_core.errors import ImageError, RunError
from memssl_core.model.backbone import embedding_width
from memssl_core.model.head import Head
from memssl_core.model.memory import Memory
from memssl_core.model.pair import Network
from memssl_core.training.film import MOST_PINNED, Pinned, as_seen, in_turn, views_sheet
from memssl_core.training.probe import Probe
from memssl_core.training.snapshots import (
    Snapshot,
    forget_after,
    look,
    packed,
    read,
    recall,
    slots_kept,
    snapshot_files,
    step_of,
    take,
    thin,
    thinned,
    write,
)
from memssl_core.training.state import TrainState
from memssl_core.training.step import train_step

SMOKE = replace(PRESETS["smoke"], threads=1, probe_images=20)


@pytest.fixture(scope="module")
def after_two_steps() -> tuple[TrainState, Batch, Pinned]:
    images = open_images("drawn:0:64:64")
    state = TrainState(SMOKE, images)
    probe = Probe.of(images, SMOKE)
    for batch in view_loader(images, SMOKE, start=0, stop=2):
        train_step(state, batch, with_gauges=False)
        state.step += 1
    return state, batch, Pinned.of(images, probe.ids, probe.transform, state.device)


@pytest.fixture(scope="module")
def snapshot(after_two_steps) -> Snapshot:
    return take(*after_two_steps)


def assert_equal(a: Snapshot, b: Snapshot) -> None:
    for name in (field.name for field in fields(Snapshot)):
        one, other = getattr(a, name), getattr(b, name)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype and np.array_equal(one, other), name
        else:
            assert one == other, name


# What is taken


def test_it_tells_the_memory_as_it_is(after_two_steps, snapshot):
    state, _, pinned = after_two_steps
    assert (snapshot.step, snapshot.total, snapshot.cursor, snapshot.written) == (2, 256, 32, 32)
    assert snapshot.slots.tolist() == list(range(256))
    assert np.array_equal(snapshot.vectors, state.memory.vectors.numpy().astype(np.float16))
    assert snapshot.written_at.tolist() == [0] * 16 + [1] * 16 + [-1] * 224
    assert np.array_equal(snapshot.image_id, state.memory.image_id.numpy())
    assert snapshot.picture_ids.tolist() == list(pinned.ids) and len(pinned.ids) == MOST_PINNED
    assert [decode_image(one).size for one in snapshot.pictures] == [(64, 64)] * 8


def test_what_a_picture_recalls_is_the_five_best_of_all_products(after_two_steps, snapshot):
    state, _, pinned = after_two_steps
    state.pair.teacher.eval()
    with torch.no_grad():
        projections = state.pair.teacher(pinned.pixels)
    state.pair.teacher.train()
    for picture, row in enumerate(projections):
        ranked = sorted(range(256), key=lambda slot: -float(row @ state.memory.vectors[slot]))[:5]
        assert snapshot.recalled_slots[picture].tolist() == ranked
        scores = [float(row @ state.memory.vectors[slot]) for slot in ranked]
        assert snapshot.recalled_scores[picture] == pytest.approx(scores, abs=1e-5)
        assert snapshot.recalled_ids[picture].tolist() == state.memory.image_id[ranked].tolist()
        assert snapshot.recalled_at[picture].tolist() == state.memory.step[ranked].tolist()
        for image_id, small, name in zip(
            snapshot.recalled_ids[picture], snapshot.recalled_pictures[picture], snapshot.recalled_names[picture],
            strict=True,
        ):  # fmt: skip
            assert bool(small) == bool(name) == (image_id >= 0)
            assert image_id < 0 or state.images.class_name(int(image_id)) == name


def test_noise_has_no_picture_and_a_small_memory_recalls_what_it_has():
    memory = Memory(3, 4, generator=torch.Generator().manual_seed(0))
    scores, slots = recall(memory, memory.vectors[:2])
    assert scores.shape == slots.shape == (2, 3) and slots[:, 0].tolist() == [0, 1]
    state = TrainState(SMOKE, images := open_images("drawn:0:64:64"))
    probe = Probe.of(images, SMOKE)
    first = take(state, None, Pinned.of(images, probe.ids[:3], probe.transform, state.device))
    assert (first.crops, first.crops_views, first.written) == (b"", 0, 0) and (first.recalled_ids == -1).all()
    assert first.recalled_pictures == ((b"",) * 5,) * 3 and first.recalled_names == (("",) * 5,) * 3


def test_nothing_of_the_run_is_changed(after_two_steps, snapshot):
    state, batch, pinned = after_two_steps
    before = {name: value.clone() for name, value in state.pair.state_dict().items()}
    modes = [module.training for module in state.pair.modules()]
    random, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    assert_equal(take(state, batch, pinned), snapshot)
    assert torch.equal(random, torch.get_rng_state()) and (numpys == np.random.get_state()[1]).all()  # type: ignore[index]
    assert modes == [module.training for module in state.pair.modules()] and all(modes)
    assert all(torch.equal(value, before[name]) for name, value in state.pair.state_dict().items())


def unfused(backbone, pixels: torch.Tensor) -> torch.Tensor:
    """[P, heads, N, N] of the last transformer block, by timm's own path without a fused kernel."""
    attn, caught = backbone.blocks[-1].attn, []
    attn.fused_attn = False
    hook = attn.attn_drop.register_forward_hook(lambda _, inputs, __: caught.append(inputs[0]))
    with torch.no_grad():
        backbone(pixels)
    hook.remove()
    return caught[0]


def network(name: str, **sizes) -> Network:
    torch.manual_seed(0)
    backbone = timm.create_model(name, num_classes=0, **sizes)
    return Network(backbone, Head(embedding_width(backbone), 8, 4, batch_norm=True)).train()


SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize("registers", [0, 3])
def test_attention_is_that_of_the_class_token_on_the_patches(registers):
    teacher, pixels = network("vit_tiny_patch16_224", reg_tokens=registers, **SMALL), torch.randn(3, 3, 32, 32)
    attention, projections = look(teacher, pixels)
    assert teacher.backbone.training and teacher.head.training
    every = unfused(teacher.eval().backbone, pixels)
    expected = every[:, :, 0, 1 + registers :].mean(1).unflatten(1, (8, 8))
    torch.testing.assert_close(attention, expected)
    torch.testing.assert_close(projections, teacher(pixels).detach())


def test_without_a_class_token_it_is_the_mean_over_the_patches():
    teacher = network("vit_tiny_patch16_224", class_token=False, global_pool="avg", **{**SMALL, "patch_size": 2})
    pixels = torch.randn(2, 3, 32, 32)  # 256 patches, so several parts of them
    attention, projections = look(teacher, pixels)
    expected = unfused(teacher.eval().backbone, pixels).mean((1, 2)).unflatten(1, (16, 16))
    torch.testing.assert_close(attention, expected)
    torch.testing.assert_close(projections, teacher(pixels).detach())


def test_a_model_without_attention_recalls_all_the_same(after_two_steps):
    state, batch, pinned = after_two_steps
    sizes = {"patch_size": None, "width": None, "depth": None, "attention_heads": None}
    other = TrainState(replace(SMOKE, backbone="resnet10t", **sizes), state.images)
    taken = take(other, batch, pinned)
    assert taken.attention is None and taken.recalled_slots.shape == (8, 5) and taken.pictures == pinned.pictures
    other.pair.teacher.eval()
    with torch.no_grad():
        best = (other.pair.teacher(pinned.pixels) @ other.memory.vectors.T).argmax(1)
    assert taken.recalled_slots[:, 0].tolist() == best.tolist()


@pytest.mark.parametrize(
    ("total", "dim"), [(1, 4), (256, 64), (8192, 256), (65_537, 128), (131_072, 256), (50_000, 2048)]
)
def test_slots_are_evenly_spaced_and_fit_into_five_megabytes(total, dim):
    slots = slots_kept(total, dim)
    assert slots[0] == 0 and slots[-1] < total and len(slots) == min(total, 8192, 8192 * 256 // dim)
    assert len(slots) == 1 or set(np.diff(slots)) <= {total // len(slots), -(-total // len(slots))}
    assert len(slots) * (2 * dim + 3 * 8) < 4_500_000


# Pictures


def listed(classes: Sequence[int | None], unreadable: frozenset[int] = frozenset()) -> Images:
    def reader(image_id: int) -> Image.Image:
        if image_id in unreadable:
            raise ImageError("It is damaged.")
        return Image.new("RGB", (32, 48), (image_id, 0, 0))

    labels = np.array([-1 if label is None else label for label in classes])
    names = tuple(map(str, range(10)))
    return Images("x", tuple(map(str, classes)), labels if any(c is not None for c in classes) else None, names, reader)


def test_pinned_pictures_are_of_all_classes_in_turn():
    images = listed([0] * 10 + [1, 1, 2])
    assert in_turn(images, [3, 11, 5, 12, 10, 4]) == [3, 11, 12, 5, 10, 4]
    chosen = in_turn(images, list(range(13)))
    assert Counter(images.label(i) for i in chosen[:5]) == {0: 2, 1: 2, 2: 1}
    assert in_turn(listed([None] * 4), [2, 0, 3]) == [2, 0, 3]


def test_pictures_that_cannot_be_read_are_passed_over():
    transform = Probe.of(open_images("drawn:0:8:64"), SMOKE).transform
    images = listed([0, 1, 0, 1, 0], frozenset({1, 2}))
    pinned = Pinned.of(images, [0, 1, 2, 3, 4], transform, torch.device("cpu"))
    assert pinned.ids == (0, 3, 4) and pinned.names == ("0", "1", "0") and pinned.pixels.shape == (3, 3, 64, 64)
    assert pinned.thumbnail(1) == b"" and decode_image(pinned.thumbnail(3)).size == (32, 48)
    nobody = Pinned.of(images, [1, 2], transform, torch.device("cpu"))
    assert nobody.ids == nobody.pictures == () and len(nobody.pixels) == 0


def test_a_run_whose_pinned_pictures_are_gone_still_has_snapshots(after_two_steps, tmp_path):
    state, batch, pinned = after_two_steps
    images = listed([0], frozenset({0}))
    nobody = Pinned.of(images, [0], Probe.of(images, SMOKE).transform, torch.device("cpu"))
    taken = take(state, batch, nobody)
    assert_equal(read(write(tmp_path, taken)), taken)


def test_a_transform_is_undone():
    transform = Probe.of(open_images("drawn:0:8:64"), SMOKE).transform
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert np.array_equal(np.asarray(as_seen(transform.normalise(Image.fromarray(noise)), transform)), noise)


def test_the_sheet_has_a_picture_a_row_and_a_view_a_column():
    grey = lambda level, side: torch.full((3, side, side), level, dtype=torch.uint8)
    stack = lambda levels, side: torch.stack([torch.stack([grey(x, side) for x in row]) for row in levels])
    batch = Batch(stack([[10, 60], [20, 70]], 128), stack([[110, 160]], 32), torch.empty(2, 4), torch.arange(2), ())
    sheet, columns = views_sheet(batch)
    pixels = np.asarray(decode_image(sheet))[..., 0]
    assert columns == 3 and pixels.shape == (2 * 96, 3 * 96)
    middles = pixels[48::96, 48::96].astype(int)
    assert np.abs(middles - [[10, 20, 110], [60, 70, 160]]).max() <= 4
    assert views_sheet(replace(batch, image_ids=torch.arange(0))) == (b"", 0)


# Files


def test_what_is_written_is_read(snapshot, tmp_path):
    path = write(tmp_path, snapshot)
    assert path == tmp_path / "snapshots" / "step-00000002.safetensors" and step_of(path) == 2
    assert snapshot_files(tmp_path) == [path] == list(path.parent.iterdir())
    assert_equal(read(path), snapshot)
    without = replace(snapshot, attention=None, step=3)
    assert_equal(read(write(tmp_path, without)), without)


def changed(content: bytes, tensors: dict | None = None, **told) -> bytes:
    """The same file with other tensors (None: without) and other facts."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    facts = {**json.loads(header["__metadata__"]["snapshot"]), **told}
    arrays = {**safetensors.numpy.load(content), **(tensors or {})}
    kept = {name: value for name, value in arrays.items() if value is not None}
    return safetensors.numpy.save(kept, {"snapshot": json.dumps(facts)})


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"\xff" * 100,
        lambda content: safetensors.numpy.save({"slots": np.arange(3)}),
        lambda content: changed(content, {"vectors": None}),
        lambda content: changed(content, {"vectors": np.zeros((256, 64), np.float32)}),
        lambda content: changed(content, {"vectors": np.full((256, 64), np.nan, np.float16)}),
        lambda content: changed(content, {"image_id": np.arange(3)}),
        lambda content: changed(content, {"slots": np.arange(1, 257)}),
        lambda content: changed(content, {"slots": np.zeros(256, np.int64)}),
        lambda content: changed(content, {"recalled_slots": np.full((8, 5), 256)}),
        lambda content: changed(content, {"surplus": np.arange(3)}),
        lambda content: changed(content, format=2),
        lambda content: changed(content, cursor=256),
        lambda content: changed(content, written="many"),
        lambda content: changed(content, sizes=[1, 2]),
        lambda content: changed(content, sizes=[-1]),
        lambda content: changed(content, picture_names=["x"]),
        lambda content: changed(content, recalled_names=[[1] * 5] * 8),
        lambda content: changed(content, recalled_names=3),
    ],
)
def test_a_damaged_file_is_said(snapshot, tmp_path, damage):
    assert_equal(read(write(tmp_path, snapshot)), snapshot)
    (path,) = snapshot_files(tmp_path)
    path.write_bytes(damage(packed(snapshot)))
    with pytest.raises(RunError, match=r"^snapshots/step-00000002.safetensors is damaged, or of another version; del"):
        read(path)


def test_one_that_is_gone_is_said(tmp_path):
    with pytest.raises(RunError, match=r"^step-00000003.safetensors is not there any more"):
        read(tmp_path / "snapshots" / "step-00000003.safetensors")


def test_a_long_run_keeps_its_first_and_last_and_an_even_choice_between():
    assert thinned([0, 1, 2, 10], 3) == {1} and thinned([0, 1, 2], 60) == set() and thinned([5, 7], 1) == set()
    kept: list[int] = []
    for step in range(0, 80_000, 100):
        kept = sorted({*kept, step} - thinned([*kept, step]))
        assert len(kept) <= 60 and kept[0] == 0 and kept[-1] == step
    gaps = np.diff(kept)
    assert len(kept) == 60 and gaps.max() <= 4 * 80_000 / 60


def test_files_are_thinned_and_those_of_later_steps_forgotten(tmp_path):
    (tmp_path / "snapshots").mkdir()
    for step in range(70):
        (tmp_path / "snapshots" / f"step-{step:08d}.safetensors").touch()
    (tmp_path / "snapshots" / "step-otherfil.safetensors").touch()
    thin(tmp_path)
    left = [step_of(path) for path in snapshot_files(tmp_path)]
    assert len(left) == 60 and set(range(70)) - set(left) == thinned(list(range(70)))
    forget_after(tmp_path, 31)
    assert [step_of(path) for path in snapshot_files(tmp_path)] == [step for step in left if step <= 31]
