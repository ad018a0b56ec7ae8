from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from memssl_core.config import PRESETS
from memssl_core.data.datasets import open_images
from memssl_core.data.views import view_loader
from memssl_core.errors import RunError
from memssl_core.jobs import JobFolder, read_events
from memssl_core.sources import open_model
from memssl_core.training.checkpoint import checkpoints, load_checkpoint
from memssl_core.training.loop import train
from memssl_core.training.snapshots import snapshot_files, step_of
from memssl_core.training.state import TrainState
from memssl_core.training.step import train_step

SMOKE = replace(PRESETS["smoke"], threads=1)
DATA = "drawn:0:64:64"


def weights(run_dir):
    return load_checkpoint(checkpoints(run_dir / "checkpoints")[-1])


def assert_same(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            if key != "trained_s":
                assert_same(a[key], b[key])
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def test_a_run_tells_its_story_and_ends_with_a_bundle(tmp_path):
    config = replace(SMOKE, steps=12, probe_every=12, probe_images=40)
    bundle = train(config, DATA, tmp_path / "run")
    events = read_events(tmp_path / "run" / "events.jsonl")[0]
    kinds = [e["event"] for e in events if e["event"] != "alarm"]
    assert kinds[:2] == ["started", "probe"] and kinds[-1] == "finished" and kinds.count("step") == 12
    step = next(e for e in events if e["event"] == "step")
    assert {"loss", "kl", "lr", "weight_decay", "momentum", "teacher_temperature", "images_per_s", "wait_share",
            "collapse_gauge", "agreement", "grad_norm", "clipped_share", "eta_s", "time_s"} <= step.keys()  # fmt: skip
    written = [e["memory_written"] for e in events if e["event"] == "step"]
    assert written == list(range(0, 12 * 16, 16))
    assert [e["step"] for e in events if e["event"] == "snapshot"] == [0, 10, 12]
    assert [step_of(path) for path in snapshot_files(tmp_path / "run")] == [0, 10, 12]
    assert {"knn_top1", "rankme"} <= next(e for e in events if e["event"] == "probe").keys()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"
    assert len(checkpoints(tmp_path / "run" / "checkpoints")) == 2
    assert train(config, DATA, tmp_path / "run") == bundle and bundle.is_dir()
    assert read_events(tmp_path / "run" / "events.jsonl")[0] == events


def test_stopping_and_going_on_equals_never_stopping(tmp_path):
    config = replace(SMOKE, steps=8, drop_path=0.1, patch_drop=0.5, probe_images=20)
    train(config, DATA, tmp_path / "whole")
    asked = iter([False, False, True])
    train(config, DATA, tmp_path / "parts", should_stop=lambda: next(asked))
    assert json.loads((tmp_path / "parts" / "status.json").read_text())["state"] == "stopped"
    assert weights(tmp_path / "parts")["step"] == 3
    (tmp_path / "parts" / "control" / "stop").touch()  # a request from before the start is not obeyed
    train(config, DATA, tmp_path / "parts")
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    taken = {folder: snapshot_files(tmp_path / folder) for folder in ("whole", "parts")}
    assert [[step_of(path) for path in paths] for paths in taken.values()] == [[0, 8], [0, 3, 8]]
    assert taken["whole"][-1].read_bytes() == taken["parts"][-1].read_bytes()


def test_snapshots_change_nothing_of_a_run(tmp_path, monkeypatch):
    config = replace(SMOKE, steps=4, drop_path=0.1, patch_drop=0.5, probe_images=20)
    often = train(replace(config, snapshot_every=1), DATA, tmp_path / "often")
    assert len(snapshot_files(tmp_path / "often")) == 5
    monkeypatch.setattr("memssl_core.training.loop._snapshot", lambda *_: None)
    never = train(config, DATA, tmp_path / "never")
    assert_same(weights(tmp_path / "often")["pair"], weights(tmp_path / "never")["pair"])
    for path in (path for path in never.iterdir() if path.name != "README.md"):
        assert path.read_bytes() == (often / path.name).read_bytes()


def test_a_file_asks_the_run_to_save(tmp_path):
    def hear(event, *, step, **_):
        if event == "step" and step == 2:
            JobFolder(tmp_path / "run").request_save()

    train(replace(SMOKE, steps=5, probe_images=20), DATA, tmp_path / "run", listen=hear)
    events = read_events(tmp_path / "run" / "events.jsonl")[0]
    assert [event["step"] for event in events if event["event"] == "saved"] == [2, 5]
    assert not JobFolder(tmp_path / "run").save_requested()


def test_a_file_asks_the_run_to_stop(tmp_path):
    def touch(event, **_):
        if event == "step":
            (tmp_path / "run" / "control" / "stop").touch()

    train(replace(SMOKE, probe_images=20), DATA, tmp_path / "run", listen=touch)
    assert weights(tmp_path / "run")["step"] == 2


def test_a_view_never_meets_its_own_key():
    """A key written at step t is absent from the memory that step t compares with, and there at step t + 1."""
    images = open_images(DATA)
    state = TrainState(SMOKE, images)
    before = state.memory.vectors.clone()
    first, second = view_loader(images, SMOKE, start=0, stop=2)
    facts = train_step(state, first, with_gauges=True).facts
    assert torch.equal(state.memory.image_id[:16], first.image_ids)
    assert not torch.equal(state.memory.vectors[:16], before[:16]) and torch.equal(
        state.memory.vectors[16:], before[16:]
    )
    fresh = TrainState(SMOKE, images)
    fresh.memory.vectors[:16] = state.memory.vectors[:16]
    assert train_step(fresh, first, with_gauges=True).facts["loss"] != facts["loss"]
    state.step = 1
    train_step(state, second, with_gauges=False)
    assert torch.equal(state.memory.image_id[16:32], second.image_ids) and state.memory.cursor == 32


def test_a_loss_that_is_not_finite_stops_before_the_update():
    images = open_images(DATA)
    state = TrainState(SMOKE, images)
    (batch,) = view_loader(images, SMOKE, start=0, stop=1)
    state.memory.vectors[3] = torch.nan
    before = {
        k: v.clone()
        for k, v in state.pair.student.state_dict().items()
        if "num_batches" not in k and "running" not in k
    }
    with pytest.raises(RunError, match="not finite at step 0"):
        train_step(state, batch, with_gauges=False)
    assert all(torch.equal(v, state.pair.student.state_dict()[k]) for k, v in before.items())
    assert state.memory.written == 0


@pytest.mark.parametrize(
    "config, data, words",
    [
        (replace(SMOKE, lr=1.0), DATA, "holds a run with lr 0.008, not 1.0"),
        (SMOKE, "drawn:1:64:64", "holds a run with data drawn:0:64:64"),
    ],
)
def test_another_run_in_the_folder_is_refused(tmp_path, config, data, words):
    asked = iter([True])
    train(replace(SMOKE, probe_images=20), DATA, tmp_path / "run", should_stop=lambda: next(asked))
    before = sorted(p.name for p in (tmp_path / "run").rglob("*"))
    with pytest.raises(RunError, match=words):
        train(replace(config, probe_images=20), data, tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").rglob("*")) == before


def test_nothing_is_begun_with_too_few_pictures_or_in_a_strangers_folder(tmp_path):
    with pytest.raises(RunError, match="fewer than batch_size 16"):
        train(SMOKE, "drawn:0:8:64", tmp_path / "run")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "love.txt").write_text("mine")
    with pytest.raises(RunError, match="holds no run"):
        train(SMOKE, DATA, tmp_path / "letters")
    assert [p.name for p in (tmp_path / "letters").iterdir()] == ["love.txt"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_process_goes_on_with_the_same_command(tmp_path, number):
    run_dir = tmp_path / "run"
    flags = ["--steps", "14", "--save-every", "2", "--probe-images", "20", "--workers", "1", "--threads", "1"]
    command = [sys.executable, "-m", "memssl_core", "train", "--data", DATA, "--preset", "smoke"]
    command += ["--run-dir", str(run_dir), *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not checkpoints(run_dir / "checkpoints") and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, number)
    process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 0
        assert json.loads((run_dir / "status.json").read_text())["state"] in ("stopped", "finished")
    second = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert second.returncode == 0, second.stderr
    assert "Going on at step" in second.stderr and second.stdout.strip() == str(run_dir / "bundle")
    train(replace(SMOKE, steps=14, save_every=2, probe_images=20, workers=1), DATA, tmp_path / "whole")
    assert_same(weights(tmp_path / "whole"), weights(run_dir))


@pytest.mark.parametrize("backbone", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_other_families_train_go_on_and_open(tmp_path, backbone):
    sizes = {"patch_size": None, "width": None, "depth": None, "attention_heads": None}
    config = replace(SMOKE, backbone=backbone, **sizes, steps=12, batch_size=4, lr=1e-3, log_every=4, save_every=8,
                     block_size=16, memory_slots=32, probe_every=12, probe_images=20)  # fmt: skip
    losses, asked = {}, iter([False] * 4 + [True])
    hear = lambda event, step, **facts: losses.update({step: facts["loss"]}) if event == "step" else None
    run = tmp_path / "run"
    train(config, "drawn:0:16:64", run, listen=hear, should_stop=lambda: next(asked))
    assert weights(run)["step"] == 5
    bundle = train(config, "drawn:0:16:64", run, listen=hear)
    assert sorted(losses) == [1, 5, 9] and all(math.isfinite(loss) for loss in losses.values())
    model = open_model(str(bundle))
    assert model.memory is not None and model.memory.embeddings is not None and model.memory.written == 48
    assert model.memory.embeddings.shape == (32, model.card["embedding_width"])
    assert (model.memory.step >= 4).all()  # all are of the last 32 / 4 steps
