"""The list of what can be opened: complete, true, unharmed by broken folders, and cheap."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from bundle.making import SLOTS, small_bundle
from timm.models import get_pretrained_cfg

from memssl_core.catalogue import _CURATED, catalogue
from memssl_core.jobs import JobFolder

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    """runs/ and bundles/ with good and broken folders, hub/ with a cached bundle and cached timm weights."""
    root = tmp_path_factory.mktemp("places")
    small_bundle().save(root / "bundles" / "good")
    for name, content in {
        "empty": {},
        "list": [],
        "wide": {"memssl": 3, "pretrained_cfg": [], "architecture": {}},
    }.items():
        shutil.copytree(root / "bundles" / "good", root / "bundles" / name)
        (root / "bundles" / name / "config.json").write_text(json.dumps(content))
    shutil.copytree(root / "bundles" / "good", root / "bundles" / "cut")
    (root / "bundles" / "cut" / "model.safetensors").write_bytes(b"short")
    (root / "bundles" / "bare").mkdir()
    (root / "bundles" / "a file").touch()

    (root / "runs" / "new" / "checkpoints").mkdir(parents=True)
    (root / "runs" / "new" / "checkpoints" / "step-00000300.pt").write_bytes(b"x" * 99)
    JobFolder(root / "runs" / "new").write_status("running", step=300, steps=2600)
    (root / "runs" / "waiting" / "checkpoints").mkdir(parents=True)
    small_bundle(with_memory=False).save(root / "runs" / "done" / "bundle")
    JobFolder(root / "runs" / "done").write_status("finished", step=2600, steps=2600)
    (root / "runs" / "done" / "status.json").touch()

    for repo, source in {"models--o--small": "good", "models--o--broken": "list"}.items():
        snapshot = root / "hub" / repo / "snapshots" / ("a" * 40)
        shutil.copytree(root / "bundles" / source, snapshot)
        (root / "hub" / repo / "refs").mkdir()
        (root / "hub" / repo / "refs" / "main").write_text("a" * 40)
    half = root / "hub" / "models--o--half"
    shutil.copytree(root / "hub" / "models--o--small", half)
    (half / "snapshots" / ("a" * 40) / "memory.parquet").unlink()
    dino = root / "hub" / "models--timm--vit_small_patch16_224.dino"
    (dino / "snapshots" / ("b" * 40)).mkdir(parents=True)
    (dino / "snapshots" / ("b" * 40) / "model.safetensors").write_bytes(b"x" * 10)
    (dino / "refs").mkdir()
    (dino / "refs" / "main").write_text("b" * 40)
    (root / "hub" / "datasets--o--pictures").mkdir()
    return root


@pytest.fixture
def listed(places, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(places / "hub"))
    monkeypatch.setenv("MEMSSL_HOME", str(places))
    return {entry.source: entry for entry in catalogue(runs=places / "runs", bundles=places / "bundles")}


def test_what_is_here_is_listed_with_its_facts(listed, places):
    good = listed[f"bundle:{places}/bundles/good"]
    size = sum(path.stat().st_size for path in (places / "bundles" / "good").iterdir())
    assert (good.title, good.group, good.nbytes, good.cached) == ("small", "bundles", size, True)
    assert good.parameters == sum(tensor.numel() for tensor in small_bundle().backbone.values())
    assert f"{SLOTS} slots" in good.note
    assert listed["run:new"].note == "running, step 300 of 2,600" and listed["run:new"].nbytes == 99
    assert listed["run:done"].note == "finished, step 2,600 of 2,600, no memory"
    assert listed["hub:o/small"].title == "small" and listed["hub:o/small"].group == "cached"
    assert listed["embedded"].cached and listed["embedded"].group == "embedded"


def test_broken_half_fetched_and_empty_folders_are_left_out(listed, places):
    bundles = [source for source in listed if source.startswith("bundle:")]
    assert bundles == [f"bundle:{places}/bundles/good"]
    assert "run:waiting" not in listed and not {"hub:o/broken", "hub:o/half"} & listed.keys()


def test_each_model_stands_there_once_and_says_whether_it_is_here(listed):
    assert listed["timm:vit_small_patch16_224.dino"].cached
    assert listed["timm:vit_small_patch16_224.dino"].group == "curated"
    assert not listed["timm:resnet18.a1_in1k"].cached


def test_runs_elsewhere_are_named_by_their_path(places, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMSSL_HOME", str(tmp_path))
    sources = [entry.source for entry in catalogue(runs=places / "runs", bundles=tmp_path)]
    assert f"run:{places}/runs/new" in sources


def test_nothing_here_is_no_mistake(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    entries = catalogue(runs=tmp_path / "none", bundles=tmp_path / "none")
    assert {entry.group for entry in entries} == {"embedded", "curated"}


@pytest.mark.parametrize(("name", "parameters", "classifier", "licence", "note"), _CURATED, ids=lambda x: str(x)[:40])
def test_the_curated_list_says_what_timm_says(name, parameters, classifier, licence, note):
    looks = get_pretrained_cfg(name)
    assert looks is not None and (looks.hf_hub_id, looks.license) == (f"timm/{name}", licence) and note
    with torch.device("meta"):
        whole = timm.create_model(name, num_classes=looks.num_classes)
        counts = [
            sum(p.numel() for p in model.parameters()) for model in (whole, timm.create_model(name, num_classes=0))
        ]
    assert counts == [parameters + classifier, parameters]


def test_listing_loads_no_torch():
    script = """
import sys
from pathlib import Path
from memssl_core.catalogue import catalogue
assert catalogue(runs=Path("none"), bundles=Path("assets"))
print(sorted({"torch", "timm"} & set(sys.modules)))"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
