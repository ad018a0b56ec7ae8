"""Every form of source opens to the model it names, offline; what cannot be opened is one sentence."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from bundle.making import SLOTS, small_bundle, small_memory
from PIL import Image
from timm.data.transforms_factory import create_transform
from timm.models import get_pretrained_cfg, save_for_hf
from torch.nn import functional as F

from memssl_core.bundle.layout import open_bundle
from memssl_core.bundle.plain import timm_transform
from memssl_core.bundle.table import MemoryTable
from memssl_core.config import PRESETS
from memssl_core.data.datasets import open_images
from memssl_core.errors import BundleError, HubError, MemsslError, ModelError, RunError
from memssl_core.jobs import JobFolder
from memssl_core.model.pair import Pair
from memssl_core.sources import fetch, is_cached, open_model, source_state
from memssl_core.training.checkpoint import FORMAT, checkpoints
from memssl_core.training.loop import train
from memssl_core.training.runs import Since, since_snapshot

FAMILIES = {"test_vit": "tokens", "test_vit3": "tokens", "test_resnet": "map", "test_efficientnet": "map"}


def pixels_for(model: Any) -> torch.Tensor:
    side = model.transform.crop_px
    return torch.linspace(-1, 1, 3 * side * side).view(1, 3, side, side)


# --- any family, and from a model to a bundle


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_of_any_family_becomes_a_bundle_and_stays_what_it_is(name, tmp_path):
    model = open_model(f"random:{name}@4")
    model.as_bundle(provenance={"note": "kept"}).save(tmp_path / "b")
    again = open_model(str(tmp_path / "b"))
    assert torch.equal(model.backbone(pixels_for(model)), again.backbone(pixels_for(model)))
    assert (again.model_hash, again.transform, again.name) == (model.model_hash, model.transform, model.name)
    assert again.card["provenance"] == {**model.card["provenance"], "note": "kept"}
    for card in (model.card, again.card):
        assert json.loads(json.dumps(card)) == card
        assert (card["family"], card["architecture"], card["memory_slots"]) == (FAMILIES[name], name, 0)
        assert card["embedding_width"] == model.backbone(pixels_for(model)).shape[1]
        assert (card["why_no_attention"] is None) == (card["blocks"] > 0) == (FAMILIES[name] == "tokens")


def test_a_bundle_gets_another_memory_and_keeps_head_student_and_bytes(tmp_path):
    small_bundle(dtype=torch.float16).save(tmp_path / "b")
    first = open_bundle(tmp_path / "b")
    model = open_model(str(tmp_path / "b"))
    new = small_memory(seed=7)
    bundle = model.as_bundle(new, provenance={"memory_of": "drawn:1:50"})
    bundle.save(tmp_path / "new")
    again = open_bundle(tmp_path / "new")
    for part in ("backbone", "head", "student"):
        before, after = getattr(first, part), getattr(again, part)
        assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)
    assert again.memory is not None and again.model_hash == first.model_hash != again.bundle_hash
    np.testing.assert_allclose(again.memory.vectors, new.vectors, atol=1e-3)
    assert again.config["memssl"]["memory"] == {"slots": SLOTS, "block_size": 10}
    assert model.as_bundle().memory is None and model.as_bundle().config["memssl"]["memory"] is None


def test_a_model_without_head_remembers_embeddings(tmp_path):
    model = open_model("random:test_resnet")
    rows = F.normalize(torch.randn(5, model.card["embedding_width"], generator=torch.Generator().manual_seed(0)), dim=1)
    five: dict[str, Any] = {
        "image_id": np.arange(5),
        "label": -np.ones(5),
        "step": np.zeros(5),
        "thumbnails": [b""] * 5,
    }
    five |= {"uri": [f"{i}.png" for i in range(5)], "class_name": [None] * 5, "box": np.tile([0, 0, 1, 1], (5, 1))}
    table = MemoryTable(vectors=rows.numpy(), cursor=0, written=5, **five)
    model.as_bundle(table).save(tmp_path / "b")
    again = open_model(str(tmp_path / "b"))
    assert again.head is None and again.memory is not None and again.card["memory_filled"] == 5
    assert again.card["has_embeddings"] and again.card["projection_width"] is None
    assert "5 slots of embeddings" in again.card["readme"]


# --- plain timm models


@pytest.mark.parametrize(
    "name",
    ["test_vit", "resnet10t", "vit_small_patch14_dinov2.lvd142m", "convnext_tiny.in12k", "vit_base_patch16_siglip_224"],
)
def test_pictures_go_in_as_timm_prepares_them(name):
    registered: Any = get_pretrained_cfg(name)
    looks = registered.to_dict()
    noise = np.random.default_rng(0).integers(0, 256, (70, 101, 3), np.uint8)
    picture = Image.fromarray(noise).resize((404, 280), Image.Resampling.BICUBIC)
    named = {key: looks[key] for key in ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")}
    expected: Any = create_transform(**named, is_training=False)
    np.testing.assert_allclose(timm_transform(looks)(picture).numpy(), expected(picture).numpy(), atol=1e-6)


@pytest.fixture
def plain(tmp_path) -> tuple[Path, Any]:
    """A timm model with a classifier, saved by timm."""
    model = timm.create_model("test_vit", num_classes=7, img_size=96).eval()
    save_for_hf(model, tmp_path / "plain", safe_serialization=True)
    return tmp_path / "plain", model


def test_config_and_weights_from_a_local_folder_offline(plain):
    """People ask for this: a folder that timm saved, no network, the same numbers."""
    folder, timms = plain
    model = open_model(str(folder))
    pixels = pixels_for(model)
    small = pixels[..., :96, :96]
    expected = timms.forward_head(timms.forward_features(small), pre_logits=True)
    torch.testing.assert_close(model.backbone(small), expected.detach(), rtol=1e-5, atol=1e-6)
    assert model.memory is model.head is None and model.name == "plain"
    assert is_cached(f"bundle:{folder}")


def test_a_folder_with_pickled_weights_is_refused_unopened(plain, tmp_path):
    folder, _ = plain
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Trap(tmp_path / "sprung")))
    with pytest.raises(BundleError, match="pickled weights are never opened"):
        open_model(str(folder))
    assert not (tmp_path / "sprung").exists()


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_args": {"pretrained_cfg_overlay": {"file": "x"}}}, "bundles may not set"),
        ({"model_args": {"embed_dim": 10**9}}, "bundles may not set"),
        ({"architecture": ["test_vit"]}, "names no timm architecture"),
        ({"architecture": "test_vitt"}, "nearest names: test_vit"),
        ({"pretrained_cfg": {"input_size": "many"}}, "how its pictures are prepared"),
        ({"model_args": {"depth": 9}}, "lacks tensor"),
    ],
)
def test_a_hostile_config_is_refused(plain, change, sentence):
    folder, _ = plain
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(MemsslError, match=sentence):
        open_model(str(folder))


# --- training runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of three steps on a folder of drawn pictures: one finished, one stopped after the second step."""
    root = tmp_path_factory.mktemp("home")
    pictures = root / "pictures"
    pictures.mkdir()
    drawn = open_images("drawn:3:24:48")
    for i in range(24):
        drawn.read(i).save(pictures / f"{i:02d}.png")
    small = {"width": 32, "head_hidden": 32, "projection_dim": 16, "memory_slots": 64, "block_size": 16, "steps": 3}
    config = replace(PRESETS["smoke"], **small, batch_size=8, save_every=1, probe_images=5, local_views=1, depth=1)
    train(config, str(pictures), root / "runs" / "done")
    steps = iter([False, True])
    train(config, str(pictures), root / "runs" / "begun", should_stop=lambda: next(steps))
    return root


@pytest.fixture
def home(runs, monkeypatch):
    monkeypatch.setenv("MEMSSL_HOME", str(runs))
    return runs


def test_an_unfinished_run_opens_from_its_newest_checkpoint(home):
    model = open_model("run:begun")
    state = torch.load(checkpoints(home / "runs" / "begun" / "checkpoints")[-1], weights_only=True)
    pair = Pair(replace(PRESETS["smoke"], **state["config"])).eval()
    pair.load_state_dict(state["pair"])
    pixels = pixels_for(model)
    with torch.no_grad():
        assert model.head is not None and model.student is not None and model.memory is not None
        torch.testing.assert_close(model.head(model.backbone(pixels)), pair.teacher(pixels))
        torch.testing.assert_close(model.student(pixels), pair.student(pixels))
    np.testing.assert_allclose(model.memory.vectors, state["memory"]["vectors"].numpy(), atol=1e-6)
    ids = state["memory"]["image_id"].tolist()
    assert model.memory.uri.to_pylist() == [f"{i:02d}.png" if i >= 0 else None for i in ids]
    assert (model.name, model.card["memory_filled"], model.card["has_embeddings"]) == ("begun, step 2", 16, False)


def test_a_checkpoint_by_its_step_and_a_finished_run(home):
    assert open_model("run:begun@1").name == "begun, step 1"
    assert open_model("run:begun@1").model_hash != open_model("run:begun@2").model_hash
    finished = open_model("run:done")
    assert finished.card["bundle_hash"] == open_bundle(home / "runs" / "done" / "bundle").bundle_hash
    assert finished.model_hash == open_model(f"run:{home}/runs/done").model_hash
    assert open_model("run:done@rankme").name == "done, step 3"
    assert source_state("run:begun") != source_state("run:begun@1") != source_state("run:none")


def test_a_checkpoint_shows_the_pictures_that_the_finished_bundle_keeps(home):
    finished, kept = (open_model(f"run:{run}").memory for run in ("done", "done@3"))
    assert kept.thumbnails.null_count == kept.slots and (kept.pictured == finished.pictured).all()
    assert [kept.thumbnail(i) for i in range(kept.slots)] == [finished.thumbnail(i) for i in range(kept.slots)]
    assert kept.pictured.sum() == (kept.image_id >= 0).sum() > 0

    lost = int(np.flatnonzero(kept.pictured)[0])
    file = home / "pictures" / kept.uri[lost].as_py()
    afresh, file = open_model("run:done@3").memory, file.rename(home / file.name)
    assert afresh.thumbnail(lost) == b""  # it has gone since the run was opened
    file.rename(home / "pictures" / file.name)


def test_what_has_become_of_a_run_since_a_snapshot(home):
    memory, run = open_model("run:begun").memory, JobFolder(home / "runs" / "begun")
    told, a_step = run.status(), memory.written // 2
    assert since_snapshot("begun", memory) == Since(0, 0, 0, is_running=False)
    try:
        run.write_status("running", step=5)
        assert since_snapshot("begun", memory) == Since(3, 3 * a_step, 0, is_running=True)  # what followed was noise
        assert since_snapshot(str(run.path), open_model("run:begun@1").memory).steps == 4
        run.write_status("stopped", step=10_000)
        assert since_snapshot("begun@2", memory) == Since(9_998, memory.slots, 2 * a_step, is_running=False)
    finally:
        run.write_status(told["state"], step=told["step"])
    finished = open_model("run:done").memory
    assert since_snapshot("done", finished) == Since(0, 0, 0, is_running=False)


def test_a_run_whose_pictures_are_gone_opens_without_their_names(home):
    (home / "pictures").rename(home / "moved")
    try:
        model = open_model("run:begun")
    finally:
        (home / "moved").rename(home / "pictures")
    assert model.memory is not None and set(model.memory.uri.to_pylist()) == {None}
    assert model.card["memory_filled"] == 16 and not model.memory.pictured.any()


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("run:nothing", "no training run named 'nothing'"),
        ("run:..", "no training run named"),
        ("run:begun@7", "begun has no checkpoint 7; it has 1, 2"),
    ],
)
def test_runs_that_cannot_be_opened(home, source, sentence):
    with pytest.raises(RunError, match=sentence):
        open_model(source)


@pytest.mark.parametrize(
    "content", [{"step": 1}, ["x"], {"format": FORMAT}, {"format": FORMAT, "config": {"backbone": 3}, "memory": {}}]
)
def test_a_checkpoint_of_something_else(home, tmp_path, content):
    folder = tmp_path / "strange"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    torch.save(content, folder / "checkpoints" / "step-00000001.pt")
    with pytest.raises(RunError, match="step-00000001.pt is not one (of this program|that this version writes)"):
        open_model(f"run:{folder}")
    (folder / "checkpoints" / "step-00000001.pt").write_bytes(pickle.dumps(_Trap(tmp_path / "sprung")))
    with pytest.raises(RunError, match="cannot be read"):
        open_model(f"run:{folder}")
    assert not (tmp_path / "sprung").exists()


# --- what cannot be opened


@pytest.mark.parametrize(
    ("source", "error", "sentence"),
    [
        (
            "hub:someone/thing",
            HubError,
            "someone/thing is not in its cache here: run `python -m memssl_core fetch hub:",
        ),
        ("hub:", ModelError, "give one of: embedded, bundle:FOLDER"),
        ("timm:vit_small_patch16_224.dinno", ModelError, "timm has no weights .*; it has .*vit_small_patch16_224.dino"),
        ("timm:vit_smal_patch16_224", ModelError, "nearest names: vit_small_patch16_224"),
        ("timm:resnet18.a1_in1k", HubError, "fetch timm:resnet18.a1_in1k"),
        ("timm:test_vit2.r160_in1k@main", ModelError, "timm has no weights"),
        ("web:https://x", ModelError, "is no kind of model source"),
    ],
)
def test_sources_that_cannot_be_opened_here(source, error, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(error, match=sentence) as caught:
        open_model(source)
    assert str(tmp_path) not in str(caught.value) and "\n" not in str(caught.value)
    assert not is_cached(source) or not source.startswith(("hub:", "timm:"))
    if error is HubError:
        with pytest.raises(HubError, match=sentence):
            fetch(source)
