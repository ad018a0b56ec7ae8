"""Many processes train as one: real ones, over gloo."""

from __future__ import annotations

import signal
import time
from dataclasses import replace

import pytest
import torch
from training.processes import ends, start

from memssl_core.config import PRESETS
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
out, changes = sys.argv[1], eval(sys.argv[2])
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
config = replace(PRESETS["smoke"], drop_path=0.0, steps=5, **changes)
images = open_images("drawn:0:64:64")
with joined("cpu") as ranks:
    state, losses = TrainState(config, images, ranks), []
    for batch in view_loader(images, config, start=0, stop=5, part=ranks.rank, parts=ranks.size):
        losses.append(train_step(state, batch, with_gauges=False)[0]["loss"])
        state.step += 1
    if ranks.is_first:
        torch.save({"losses": losses, **state.pair.state_dict(), **state.memory.state_dict()}, out)
"""


def steps(tmp_path, count: int, changes: dict) -> dict:
    out = tmp_path / f"{count}.pt"
    for status, _, errors in ends(start(["-c", STEPS, str(out), repr(changes)], count)):
        assert status == 0, errors
    return torch.load(out)


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({"head_batch_norm": False}, 1e-7),
        ({"head_batch_norm": True}, 1e-6),
        ({"head_batch_norm": False, "accumulate": 2}, 1e-7),
        ({"head_batch_norm": True, "backbone": "resnet10t", "patch_size": None, "width": None, "depth": None,
          "attention_heads": None}, 1e-6),
    ],
)  # fmt: skip
def test_two_processes_equal_one_with_the_joint_batch(tmp_path, changes, tolerance):
    one, two = steps(tmp_path, 1, changes), steps(tmp_path, 2, changes)
    assert one.keys() == two.keys() and len(one["losses"]) == 5
    for name in one:
        torch.testing.assert_close(torch.as_tensor(two[name]), torch.as_tensor(one[name]), rtol=0, atol=tolerance)
    assert two["image_id"][:80].min() >= 0 and int(two["written"]) == 80


def test_micro_batches_equal_the_whole_batch(tmp_path):
    whole, parts = steps(tmp_path, 1, {"head_batch_norm": False}), None
    parts = steps(tmp_path, 1, {"head_batch_norm": False, "accumulate": 4})
    for name in whole:
        torch.testing.assert_close(torch.as_tensor(parts[name]), torch.as_tensor(whole[name]), rtol=0, atol=1e-9)


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
