"""Many processes train as one: real ones, over gloo."""

from __future__ import annotations

import signal
import time
from dataclasses import replace

import pytest
import torch
from training.processes import ends, start

from memssl_core.config import PRESETS
from memssl_core.data.datasets import open_images
from memssl_core.errors import RunError
from memssl_core.jobs import JobFolder, read_events
from memssl_core.training.checkpoint import checkpoints, load_checkpoint
from memssl_core.training.loop import train
from memssl_core.training.ranks import LOST, Ranks

DATA = "drawn:0:64:64"
STEPS = """
import sys
from dataclasses import replace
import torch
from memssl_core.config import PRESETS
from memssl_core.data.datasets import open_images
from memssl_core.data.views import view_loader
from memssl_core.training.ranks import joined
from memssl_core.training.state import TrainState
from memssl_core.training.step import train_step
out, all_changes, told = sys.argv[1], eval(sys.argv[2]), {}
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
images = open_images("drawn:0:64:64")
with joined("cpu") as ranks:
    for name, changes in all_changes.items():
        config = replace(PRESETS["smoke"], drop_path=0.0, steps=5, **changes)
        state, losses = TrainState(config, images, ranks), []
        for batch in view_loader(images, config, start=0, stop=5, part=ranks.rank, parts=ranks.size):
            losses.append(train_step(state, batch, with_gauges=False).facts["loss"])
            state.step += 1
        told[name] = {"losses": losses, **state.pair.state_dict(), **state.memory.state_dict()}
    if ranks.is_first:
        torch.save(told, out)
"""
RESNET = {"backbone": "resnet10t", "patch_size": None, "width": None, "depth": None, "attention_heads": None}
CHANGES = {
    "plain": {"head_batch_norm": False},
    "batch norm in the head": {"head_batch_norm": True},
    "micro-batches": {"head_batch_norm": False, "accumulate": 2},
    "batch norm in the backbone": {"head_batch_norm": True, **RESNET},
}


@pytest.fixture(scope="module")
def after(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict]:
    """By number of processes: losses, weights and memory after five steps of each of CHANGES."""
    folder = tmp_path_factory.mktemp("steps")
    groups = {count: start(["-c", STEPS, str(folder / f"{count}.pt"), repr(CHANGES)], count) for count in (1, 2)}
    for processes in groups.values():
        for status, _, errors in ends(processes):
            assert status == 0, errors
    return {count: torch.load(folder / f"{count}.pt") for count in groups}


def assert_close(one: dict, other: dict, tolerance: float) -> None:
    assert one.keys() == other.keys() and len(one["losses"]) == 5
    for name in one:
        torch.testing.assert_close(torch.as_tensor(other[name]), torch.as_tensor(one[name]), rtol=0, atol=tolerance)


@pytest.mark.parametrize(("name", "tolerance"), [(name, 1e-6 if "batch norm" in name else 1e-7) for name in CHANGES])
def test_two_processes_equal_one_with_the_joint_batch(after, name, tolerance):
    assert_close(after[1][name], after[2][name], tolerance)
    assert after[2][name]["image_id"][:80].min() >= 0 and int(after[2][name]["written"]) == 80


def test_micro_batches_equal_the_whole_batch(after):
    assert_close(after[1]["plain"], after[1]["micro-batches"], 1e-9)


def test_pictures_that_cannot_be_read_are_told_whoever_meets_them(tmp_path):
    """One process's whole share of a step among them; batch normalisation and micro-batches beside it."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    drawn = open_images("drawn:0:16:64")
    for i in range(16):
        drawn.read(i).save(folder / f"{i:02d}.png")
        if i % 4 == 0:
            (folder / f"{i:02d}.png").write_bytes(b"no picture")
    flags = ["--batch-size", "4", "--accumulate", "2", "--steps", "8", "--memory-slots", "64"]
    argv = command(tmp_path / "run", *flags)
    argv[argv.index(DATA)] = str(folder)
    told = ends(start(argv, 2))
    assert [status for status, *_ in told] == [0, 0], told
    events = read_events(tmp_path / "run" / "events.jsonl")[0]
    assert len([event for event in events if event["event"] == "skipped_image"]) == 4
    assert [event["step"] for event in events if event["event"] == "step"][-1] == 8


def command(run_dir, *flags: str) -> list[str]:
    flags = ("--probe-images", "20", "--workers", "0", "--threads", "1", *flags)
    return ["-m", "memssl_core", "train", "--data", DATA, "--preset", "smoke", "--run-dir", str(run_dir), *flags]


def wait_for(is_there, processes, timeout_s=90):
    until = time.monotonic() + timeout_s
    while not is_there():
        assert time.monotonic() < until and all(process.poll() is None for process in processes)
        time.sleep(0.02)


def test_one_killed_ends_all_and_the_run_goes_on(tmp_path):
    run_dir = tmp_path / "run"
    processes = start(command(run_dir, "--steps", "30", "--save-every", "3"), 2)
    wait_for(lambda: checkpoints(run_dir / "checkpoints"), processes)
    processes[1].send_signal(signal.SIGKILL)
    (status, _, errors), _ = ends(processes, 30)
    assert status == 1 and errors.strip().endswith(LOST) and "Traceback" not in errors
    status = JobFolder(run_dir).status()
    assert status and status["state"] == "failed" and status["message"] == LOST
    assert load_checkpoint(checkpoints(run_dir / "checkpoints")[-1])["step"] % 3 == 0
    told = ends(start(command(run_dir, "--steps", "30", "--save-every", "3"), 2))
    assert [status for status, *_ in told] == [0, 0], told
    assert told[0][1].strip() == str(run_dir / "bundle") and (run_dir / "bundle" / "memory.parquet").is_file()
    events = read_events(run_dir / "events.jsonl")[0]
    assert [e["processes"] for e in events if e["event"] == "started"] == [2, 2]
    assert [e["step"] for e in events if e["event"] == "step"][-1] == 30


def test_a_mistake_of_the_first_is_told_by_all(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "love.txt").write_text("mine")
    for status, _, errors in ends(start(command(tmp_path / "letters"), 2)):
        assert status == 1 and "holds no run" in errors and "Traceback" not in errors
    for status, _, errors in ends(start(command(tmp_path / "run", "--batch-size", "15"), 2)):
        assert status == 1 and "cannot be divided by 2 processes" in errors


def test_one_that_is_asked_to_stop_stops_all(tmp_path):
    run_dir = tmp_path / "run"
    processes = start(command(run_dir, "--steps", "5000"), 2)
    wait_for(lambda: checkpoints(run_dir / "checkpoints"), processes)
    processes[1].send_signal(signal.SIGTERM)
    told = ends(processes, 60)
    assert [status for status, *_ in told] == [0, 0], told
    status = JobFolder(run_dir).status()
    assert status and status["state"] == "stopped"
    assert load_checkpoint(checkpoints(run_dir / "checkpoints")[-1])["step"] == status["step"]


def test_alone_nothing_is_gathered():
    rows = torch.arange(3)
    assert Ranks().gather(rows, rows)[1] is rows and Ranks().sums(1, 2.5) == [1, 2.5]
    assert Ranks().from_first(lambda: 7) == 7
    with pytest.raises(RunError), Ranks().speaking():
        raise RunError("mine")


def test_a_batch_is_shared_out_in_order():
    from memssl_core.data.views import StepBatches

    whole = list(StepBatches(64, 16, 0, 2, 7))
    parts = [list(StepBatches(64, 16, 0, 2, 7, part, 4)) for part in range(4)]
    assert [sum((part[i] for part in parts), []) for i in range(5)] == whole


def test_the_number_of_workers_changes_nothing(tmp_path):
    config = replace(PRESETS["smoke"], threads=1, steps=4, probe_images=20)
    asked = iter([False, True])
    train(replace(config, workers=1), DATA, tmp_path / "run", should_stop=lambda: next(asked))
    train(replace(config, workers=3, save_every=1), DATA, tmp_path / "run")
    train(config, DATA, tmp_path / "whole")
    one, other = (load_checkpoint(checkpoints(tmp_path / name / "checkpoints")[-1]) for name in ("run", "whole"))
    for name, tensor in one["pair"].items():
        assert torch.equal(tensor, other["pair"][name])
    for name in ("memory.safetensors", "config.json"):
        assert (tmp_path / "run" / "bundle" / name).read_bytes() == (tmp_path / "whole" / "bundle" / name).read_bytes()
