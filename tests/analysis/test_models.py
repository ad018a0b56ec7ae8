"""Several models within a budget: handles, eviction, replacement on disk; and the one door to models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle.making import SLOTS, small_bundle

from analysis import Models, Workbench
from memssl_core.errors import BundleError, ModelError
from memssl_core.model.backbone import create_backbone
from memssl_core.sources import open_model

ROOT = Path(__file__).resolve().parents[2]
RANDOM = "random:vit_tiny_patch16_224"


def test_a_handle_leads_to_its_model_and_opens_it_once(folder, picture):
    models = Models()
    handle = models.open(f"bundle:{folder}")
    assert isinstance(models[handle], Workbench) and models[handle] is models[models.open(f"bundle:{folder}")]
    assert models.open(str(folder)) == handle and len(models) == 1
    assert handle.startswith(models[handle].model.model_hash[:12])


def test_the_least_recently_used_goes_first_and_comes_back(tmp_path):
    for seed in range(3):
        small_bundle(seed=seed).save(tmp_path / str(seed))
    size = open_model(str(tmp_path / "0")).nbytes
    models = Models(budget_bytes=int(2.5 * size))
    handles = [models.open(str(tmp_path / str(seed))) for seed in range(2)]
    benches = [models[handle] for handle in handles]
    assert models[handles[0]] is benches[0]  # used last, so the other one goes
    third = models.open(str(tmp_path / "2"))
    assert len(models) == 2 and models[handles[0]] is benches[0]
    again = models[handles[1]]
    assert again is not benches[1] and again.model.model_hash == benches[1].model.model_hash
    assert len(models) == 2 and len({*handles, third}) == 3


def test_a_model_over_the_budget_is_still_opened(folder):
    models = Models(budget_bytes=1)
    assert models[models.open(str(folder))].model.name == "small"


def test_an_unknown_handle(folder):
    with pytest.raises(ModelError, match="not open here; choose it again"):
        Models()["abc"]


def test_a_bundle_replaced_on_disk_is_opened_anew(tmp_path):
    models = Models(budget_bytes=1)
    small_bundle(seed=1).save(tmp_path / "b")
    old = models.open(str(tmp_path / "b"))
    small_bundle(seed=2).save(tmp_path / "b")
    new = models.open(str(tmp_path / "b"))
    assert new != old and models[new].model.model_hash != old[:12]
    with pytest.raises(ModelError, match="replaced since you opened it"):
        models[old]


def test_models_answer_the_same_where_they_were_moved(tmp_path, picture, monkeypatch):
    for seed in range(2):
        small_bundle(seed=seed).save(tmp_path / str(seed))
    models = Models()
    handles = [models.open(str(tmp_path / str(seed))) for seed in range(2)]
    before = [models[handle].attention(picture).rows for handle in handles]
    moved: list[str] = []
    move = Workbench.move
    monkeypatch.setattr(Workbench, "move", lambda bench, device: moved.append(bench.model.name) or move(bench, device))
    models.move("cpu")
    assert len(moved) == 2 and (models.home, models.device) == (torch.device("cpu"),) * 2
    for handle, rows in zip(handles, before, strict=True):
        np.testing.assert_array_equal(models[handle].attention(picture).rows, rows)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_models_give_the_memory_of_a_gpu_back(tmp_path, picture):
    small_bundle(seed=0).save(tmp_path / "0")
    models = Models(device="cuda")
    bench = models[models.open(str(tmp_path / "0"))]
    rows, held = bench.attention(picture).rows, torch.cuda.memory_reserved()
    models.move("cpu")
    assert torch.cuda.memory_reserved() < held and models.home.type == "cuda"
    np.testing.assert_allclose(bench.attention(picture).rows, rows, atol=1e-4)
    models.move(models.home)
    np.testing.assert_array_equal(bench.attention(picture).rows, rows)


# --- open_model


def test_a_bundle_opens_with_everything(folder):
    model: Any = open_model(f"bundle:{folder}")
    assert (model.name, model.source) == ("small", f"bundle:{folder}")
    pixels = torch.randn(1, 3, 40, 72)
    embedding = model.backbone(pixels)
    assert embedding.shape == (1, 32) and not embedding.requires_grad
    assert model.head(embedding).shape == model.student(pixels).shape == (1, 16)
    assert model.memory.slots == SLOTS and (model.transform.resize_px, model.transform.crop_px) == (72, 64)


def test_the_card_of_a_bundle_is_plain_json(folder):
    card = open_model(str(folder)).card
    assert json.loads(json.dumps(card)) == card
    assert card["memory_slots"] == SLOTS and card["memory_images"] == 20 and card["patch_px"] == 8
    assert (card["blocks"], card["attention_heads"], card["input_px"]) == (3, 2, 64)
    assert card["figures"]["knn_top1"] == 61.5 and card["data"] == "drawn:7:20"
    assert len(card["model_hash"]) == len(card["bundle_hash"]) == 64


def test_random_models_depend_on_the_seed_alone(picture):
    state = torch.get_rng_state()
    first, again, other = (open_model(f"{RANDOM}{seed}") for seed in ("@3", "@3", "@4"))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.model_hash == again.model_hash != other.model_hash
    assert open_model(RANDOM).model_hash == open_model(f"{RANDOM}@0").model_hash
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = create_backbone("vit_tiny_patch16_224")
    assert all(torch.equal(value, first.backbone.state_dict()[key]) for key, value in expected.state_dict().items())
    bench = Workbench(first)
    assert np.isfinite(bench.embedding(picture)).all() and bench.attention(picture).rows.shape[0] == 3
    assert json.loads(json.dumps(first.card)) == first.card


def test_opening_a_bundle_draws_nothing_from_the_callers_generator(folder):
    state = torch.get_rng_state()
    open_model(str(folder))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "source, sentence",
    [
        ("random:vit_tinny_patch16_224", "nearest names: vit_tiny_patch16_224"),
        ("random:vit_tiny_patch16_224@x", "no seed"),
        ("random:vit_giant_patch14_224", "million parameters"),
        ("ftp:someone/thing", "is no kind of model source; give one of: embedded, bundle:FOLDER"),
        ("nowhere", "'nowhere' is no folder; give one of"),
        ("", "is no kind of model source"),
    ],
)
def test_sources_that_cannot_be_opened(source, sentence):
    with pytest.raises(ModelError, match=sentence) as caught:
        open_model(source)
    assert str(caught.value).endswith(".") or "give one of" in str(caught.value)


def test_a_bundle_that_is_not_there(tmp_path):
    with pytest.raises(BundleError, match="no bundle folder named absent"):
        open_model(f"bundle:{tmp_path}/absent")
    with pytest.raises(BundleError, match="no config.json"):
        open_model(str(tmp_path))


SWITCHES = """
import sys
import numpy as np
import psutil
from analysis import Models
names = ("vit_tiny_patch16_224", "resnet18", "vit_small_patch16_224", "convnext_atto")
models, picture = Models(budget_bytes=100 << 20), np.zeros((200, 300, 3), np.uint8)
for switch in range(1, 21):
    workbench = models[models.open(f"random:{names[switch % 4]}@{switch}")]
    workbench.embedding(picture)
    if workbench.model.card["family"] == "tokens":
        workbench.attention_all(picture, size=224)
    if switch in (5, 20):
        print(psutil.Process().memory_info().rss >> 20)
"""


def test_models_that_went_give_their_memory_back():
    run = subprocess.run([sys.executable, "-c", SWITCHES], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    after_5, after_20 = map(int, run.stdout.split())
    assert after_20 - after_5 <= 150
