"""What a plan says against counting by hand, against a real run, and against what the trainer itself refuses."""

from __future__ import annotations

import json
import math
import shutil
from collections import namedtuple
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from memssl_core.config import PRESETS
from memssl_core.errors import MemsslError, RunError
from memssl_core.model.pair import Pair
from memssl_core.training import plan as plans
from memssl_core.training.checkpoint import checkpoints
from memssl_core.training.loop import train
from memssl_core.training.plan import as_json, measure, plan, table

TINY = replace(
    PRESETS["smoke"], threads=1, steps=4, batch_size=8, memory_slots=64, block_size=16, probe_images=10, save_every=2
)
DATA = "drawn:0:32:64"
Usage = namedtuple("Usage", "total used free")


def test_the_numbers_are_those_of_counting(tmp_path):
    config = replace(TINY, steps=None, epochs=2.6, batch_size=6)
    told = plan(config, "drawn:0:32:64+drawn:1:3:64", tmp_path / "runs")
    assert (told.images, told.classes, told.steps_per_epoch) == (35, 8, 5)
    assert told.steps == 13 and told.turns == pytest.approx(13 * 6 / 64)
    assert (told.device, told.threads, told.processes, told.problems) == (told.device, 1, 1, ())
    assert told.cores >= 1 and told.disk_free_bytes > told.disk_bytes and told.memory_free_bytes > 10**8
    assert "is more than a quarter of the 35 pictures" in told.advice[0]
    assert not (tmp_path / "runs").exists()
    flat = tmp_path / "flat"
    flat.mkdir()
    for i in range(9):
        Image.new("RGB", (40, 40), (i, 0, 0)).save(flat / f"{i}.png")
    told = plan(TINY, str(flat), tmp_path)
    assert (told.images, told.classes, told.steps, told.problems) == (9, None, 4, ())


@pytest.mark.parametrize("optimizer, moments", [("adamw", 2), ("lars", 1)])
def test_a_checkpoint_is_as_large_as_its_tensors(optimizer, moments):
    config = replace(TINY, optimizer=optimizer)
    pair, memory = Pair(config), 64 * (64 * 4 + 8 + 8 + 4 * 4)
    student = sum(math.prod(p.shape) * 4 for p in pair.student.parameters())
    both = sum(math.prod(t.shape) * t.element_size() for t in pair.state_dict().values())
    assert plans._checkpoint_bytes(plans._shapes(config), config) == both + moments * student + memory


def test_a_real_run_fits_in_what_was_said(tmp_path):
    config = replace(TINY, head_hidden=2048, memory_slots=2048, block_size=64, snapshot_every=1)
    told = plan(config, DATA, tmp_path)
    train(config, DATA, tmp_path / "run")
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    one = checkpoints(tmp_path / "run" / "checkpoints")[0].stat().st_size
    links = sum(path.stat().st_size for path in files if path.name.startswith("best"))  # of files that count already
    really = sum(path.stat().st_size for path in files) - links + 3 * one  # while one is written, and two are best
    assert 0.5 * told.disk_bytes < really < told.disk_bytes


def refusal(config, data, folder):
    with pytest.raises(MemsslError) as reason:
        train(config, data, folder)
    return str(reason.value)


@pytest.mark.parametrize(
    "changes, data",
    [
        ({}, "drawn:0:3:64"),
        ({}, "no-such-folder"),
        ({}, "drawn:0:x"),
        ({"device": "nowhere"}, DATA),
        ({"backbone": "vit_tini"}, DATA),
        ({"global_size": 7}, DATA),
        ({"backbone": "test_resnet"}, DATA),
    ],
)
def test_what_cannot_run_is_told_in_the_trainers_words(tmp_path, changes, data):
    config = replace(TINY, **changes)
    told = plan(config, data, tmp_path)
    assert told.problems == (refusal(config, data, tmp_path / "run"),)
    with pytest.raises(MemsslError) as reason:
        measure(config, data)
    assert str(reason.value) == told.problems[0]


def test_processes_that_do_not_share_a_batch_are_refused(tmp_path):
    assert "cannot be divided by 3 processes" in plan(TINY, DATA, tmp_path, processes=3).problems[0]
    assert plan(TINY, DATA, tmp_path, processes=2).problems == () or torch.cuda.is_available()


def test_every_problem_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 10**6, 10**6))
    monkeypatch.setattr(plans, "_memory_free", lambda device: 10**6)
    few, disk, memory = plan(TINY, "drawn:0:3:64", tmp_path).problems
    assert "fewer than batch_size 8" in few
    assert disk.startswith("The disk has 1 MB free and this run may need 1") and "make room" in disk
    assert memory.startswith("1 MB of memory are free") and "a smaller batch_size" in memory
    assert plans._batch_bytes(TINY) == 8 * (2 * 3 * 64 * 64 + 2 * 3 * 32 * 32)


def test_a_disk_without_any_room_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 0))
    assert "The disk has 0 MB free" in plan(TINY, "drawn:0:32:64", tmp_path).problems[0]


@pytest.mark.parametrize(
    "changes",
    [
        *({"memory_slots": 10**18}, {"width": 2**26, "attention_heads": 2}, {"width": 2**40}, {"depth": 1000}),
        *({"workers": 10**9}, {"threads": 10**9}),
    ],
)
def test_sizes_beyond_any_machine_are_refused_at_once(tmp_path, changes):
    told = plan(replace(TINY, **changes), DATA, tmp_path)
    assert told.problems
    json.loads(as_json(told, None))


def test_a_run_without_an_end_is_refused(tmp_path):
    told = plan(replace(TINY, steps=None, epochs=math.inf), DATA, tmp_path)
    assert told.problems == ("epochs is inf; it must have an end.",) and told.steps == 0


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for runs in (tmp_path / "file", tmp_path / "file" / "runs", tmp_path / "dangling"):
        (tmp_path / "dangling").unlink(missing_ok=True)
        (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
        (problem,) = plan(TINY, DATA, runs).problems
        assert problem.startswith(f"The folder of runs, {runs.name}, cannot be written:")
        assert str(tmp_path) not in problem


@given(steps=st.integers(1, 300), every=st.integers(1, 320))
def test_how_often_something_is_due(steps, every):
    due = [step for step in range(steps + 1) if step in (0, steps) or step % every == 0]
    assert plans._times(steps, every) == len(due)


@pytest.mark.parametrize("workers, processes", [(0, 1), (1, 2)])
def test_measuring_trains_and_leaves_nothing(tmp_path, monkeypatch, workers, processes):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    config, told = replace(TINY, workers=workers, steps=40, snapshot_every=10, accumulate=2), []
    emit = lambda event, *, step, **facts: told.append((event, step, facts["total"]))
    measured = measure(config, DATA, steps=2, processes=processes, emit=emit)
    assert list(tmp_path.iterdir()) == []
    assert told == [("progress", step, 3) for step in range(3)]
    assert measured.steps == 2 and measured.step_s > 0
    assert measured.images_per_s == pytest.approx(8 / measured.step_s)
    assert measured.seconds > 40 * measured.step_s and measured.memory_bytes > processes * 10**8
    rows = dict(table(plan(config, DATA, tmp_path), measured))
    assert {"speed", "time", "memory needed"} <= rows.keys()
    assert json.loads(as_json(plan(config, DATA, tmp_path), measured))["measured"] == asdict(measured)


def test_measuring_can_be_stopped():
    with pytest.raises(RunError, match="nothing was measured"):
        measure(TINY, DATA, should_stop=lambda: True)


def test_memory_that_was_let_go_of_again_is_seen():
    with plans._watching(torch.device("cpu"), every_s=0.01) as seen:
        before = seen[0] or plans._resident(plans.psutil.Process())
        for _ in range(3):
            held = np.ones(25_000_000)
            held += 1
            del held
    assert max(seen) - before > 150_000_000


def test_memory_is_that_of_a_container(tmp_path, monkeypatch):
    monkeypatch.setattr(plans, "_CGROUP", tmp_path)
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 30\nactive_file 20\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.max").write_text("1000\n")
    assert plans._memory_free(torch.device("cpu")) == 1000 - (900 - 50)
    (tmp_path / "memory.max").write_text("max\n")
    assert plans._memory_free(None) > 10**8
