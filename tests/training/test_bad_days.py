"""What a run survives: kills at any moment, a full disk, damaged and strange checkpoints, steps that fail."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from memssl_core.cli import main
from memssl_core.config import PRESETS
from memssl_core.errors import RunError
from memssl_core.jobs import JobFolder, event_writer, read_events
from memssl_core.model.backbone import embedding_width
from memssl_core.sources import open_model
from memssl_core.training.checkpoint import checkpoints, load_checkpoint, load_newest, save_checkpoint
from memssl_core.training.loop import train
from memssl_core.training.pressure import first_to_go, is_of_memory
from memssl_core.training.probe import Probe
from memssl_core.training.runs import run_weights
from memssl_core.training.snapshots import snapshot_files, step_of
from memssl_core.training.step import train_step

SMOKE = replace(PRESETS["smoke"], threads=1, steps=8, save_every=2, probe_images=20)
DATA = "drawn:0:64:64"


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after 4 of its 8 steps, with checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    asked = iter([False] * 3 + [True])
    train(SMOKE, DATA, folder, should_stop=lambda: next(asked))
    assert [path.name for path in checkpoints(folder / "checkpoints")] == ["step-00000002.pt", "step-00000004.pt"]
    return folder


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "run"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bundle of the same run when nothing ever happens to it."""
    return files(train(SMOKE, DATA, tmp_path_factory.mktemp("whole") / "run"))


def files(bundle: Path) -> dict[str, bytes]:
    """Its card apart, which tells how long it took."""
    return {path.name: path.read_bytes() for path in bundle.iterdir() if path.name != "README.md"}


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "a flipped bit":
        content[len(content) // 2] ^= 1
    else:
        content = bytearray()
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "a flipped bit", "empty"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(run, whole, how):
    newest = checkpoints(run / "checkpoints")[-1]
    damage(newest, how)
    bundle = train(SMOKE, DATA, run)
    events = read_events(run / "events.jsonl")[0]
    (alarm,) = [e["message"] for e in events if e["event"] == "alarm" and "cannot be read" in e["message"]]
    assert alarm == f"{newest.name} cannot be read; the run goes on from step-00000002.pt."
    assert newest.with_name(f"{newest.name}.damaged").is_file()
    (begun, again) = [event for event in events if event["event"] == "started"]
    assert (begun["resumed"], again["resumed"], again["step"]) == (False, True, 2) and "Restored step 2 of 8" in again[
        "restored"
    ]
    assert files(bundle) == whole
    assert [step_of(path) for path in snapshot_files(run)] == [0, 8]  # that of step 4 was of another future


def test_if_all_are_damaged_nothing_is_begun_anew(run):
    for path in checkpoints(run / "checkpoints"):
        damage(path, "truncated")
    before = {path: path.read_bytes() for path in run.rglob("*.pt")}
    with pytest.raises(RunError, match=r"None of the checkpoints can be read \(step-00000004.pt, step-00000002.pt\)"):
        train(SMOKE, DATA, run)
    assert {path: path.read_bytes() for path in run.rglob("*.pt")} == before


def change(path: Path, **facts) -> None:
    state = torch.load(path, weights_only=True)
    if "optimizer.state" in facts:
        facts = {"optimizer": {**state["optimizer"], "state": facts["optimizer.state"]}}
    torch.save({name: value for name, value in {**state, **facts}.items() if value is not None}, path)


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"format": 1}, "not one that this version writes"),
        ({"optimizer": None}, "lacks optimizer; restore a whole one"),
        ({"memory": {}}, "does not fit its settings"),
        ({"optimizer.state": {}}, "does not fit its settings"),
        ({"listing": "0"}, "not those that this run began with .64 then, 64 now"),
    ],
)
def test_a_state_that_is_not_whole_is_refused(run, facts, sentence):
    change(checkpoints(run / "checkpoints")[-1], **facts)
    with pytest.raises(RunError, match=sentence):
        train(SMOKE, DATA, run)
    assert len(checkpoints(run / "checkpoints")) == 2


def test_a_run_that_ended_before_it_began_is_no_stranger(tmp_path, whole):
    (tmp_path / "run" / "control").mkdir(parents=True)
    assert files(train(SMOKE, DATA, tmp_path / "run")) == whole


def test_a_second_trainer_is_refused(run):
    with FileLock(run / ".lock"), pytest.raises(RunError, match="run is being trained by another process"):
        train(SMOKE, DATA, run)


def test_what_the_first_probe_told_needs_no_events(run, whole):
    (run / "events.jsonl").unlink()
    assert files(train(SMOKE, DATA, run)) == whole


def test_a_signal_to_the_whole_group_saves(tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "memssl_core", "train", "--data", DATA, "--preset", "smoke", "--run-dir", str(run)]
    command += ["--steps", "3000", "--probe-images", "20", "--threads", "1", "--workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while process.poll() is None and not checkpoints(run / "checkpoints"):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)  # as torchrun does
    errors = process.communicate(timeout=60)[1]
    status = JobFolder(run).status()
    assert process.returncode == 0 and status and status["state"] == "stopped", errors
    assert load_checkpoint(checkpoints(run / "checkpoints")[-1])["step"] == status["step"]


def test_a_run_stopped_by_the_file_is_a_bundle_and_still_the_same_run(run, whole):
    """And the bundle of a run that has gone on since is no longer taken for it."""
    job, told = JobFolder(run), []

    def hear(event, *, step, **_):
        told.extend([(status["state"], status.get("words"))] if (status := job.status()) else [])
        if event == "step" and step == 5:
            job.request_stop()

    train(SMOKE, DATA, run, listen=hear)
    assert told[-1] == ("running", "writing the bundle") and (job.status() or {})["state"] == "stopped"
    assert [event["event"] for event in read_events(job.events)[0]][-4:] == ["step", "saved", "snapshot", "stopped"]
    stopped = json.loads((run / "bundle" / "config.json").read_bytes())
    assert stopped["memssl"]["provenance"]["steps"] == 6 and run_weights(str(run)) == run / "bundle"
    memory = open_model(f"run:{run}").memory
    assert memory is not None and memory.embeddings is not None and memory.written == 6 * 16
    asked = iter([True])
    train(SMOKE, DATA, run, should_stop=lambda: next(asked))
    assert run_weights(str(run)) == run / "checkpoints" / "step-00000007.pt"
    assert json.loads((run / "bundle" / "config.json").read_bytes()) == stopped  # a signal leaves no time for another
    assert files(train(SMOKE, DATA, run)) == whole and run_weights(str(run)) == run / "bundle"


STARVED = """
import sys
from pathlib import Path
import psutil
from memssl_core.cli import main
from memssl_core.training import loop

def emit_and_starve(path, *also, write=loop.event_writer):
    emit = write(path, *also)
    def wrapped(event, *, step, **facts):
        emit(event, step=step, **facts)
        if event == "step":
            print("score", Path("/proc/self/oom_score_adj").read_text())
            us = psutil.Process()
            us.rlimit(psutil.RLIMIT_AS, (us.memory_info().vms + 1_000_000,) * 2)
    return wrapped

loop.event_writer = emit_and_starve
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits the memory of a process")
def test_a_trainer_without_memory_says_what_to_do(run, whole):
    command = [sys.executable, "-c", STARVED, "train", "--data", DATA, "--preset", "smoke", "--run-dir", str(run)]
    command += ["--steps", "8", "--save-every", "2", "--probe-images", "20", "--threads", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    status = JobFolder(run).status() or {}
    assert ended.returncode == 1 and "Traceback" not in ended.stderr, ended.stderr
    assert status["state"] == "failed", ended.stderr
    assert status["message"] in ended.stderr
    assert status["message"].startswith("There is not enough memory for batch_size 16 with accumulate 1; the last")
    assert "score 500" in ended.stdout
    assert load_checkpoint(checkpoints(run / "checkpoints")[-1])["step"] in (4, 6, 8)
    assert files(train(SMOKE, DATA, run)) == whole


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8.2 GB)"), True),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), True),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(28, "No space left on device"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_is_a_lack_of_memory(reason, expected):
    assert is_of_memory(reason) == expected


@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").exists(), reason="only Linux chooses whom to end")
def test_whoever_trained_is_not_the_first_to_go_for_ever():
    score = Path("/proc/self/oom_score_adj")
    before = score.read_text()
    with first_to_go():
        assert int(score.read_text()) >= 500
    assert score.read_text() == before


def test_other_pictures_in_the_same_place_are_refused(tmp_path):
    for name in "abcdefgh" * 2:
        path = tmp_path / "data" / name / f"{len(list(tmp_path.rglob('*.png')))}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        from PIL import Image

        Image.new("RGB", (64, 64), (9 * len(list(tmp_path.rglob("*.png"))), 0, 0)).save(path)
    asked = iter([True])
    train(SMOKE, str(tmp_path / "data"), tmp_path / "run", should_stop=lambda: next(asked))
    (tmp_path / "data" / "a" / "0.png").rename(tmp_path / "data" / "a" / "renamed.png")
    with pytest.raises(RunError, match="not those that this run began with"):
        train(SMOKE, str(tmp_path / "data"), tmp_path / "run")


def test_a_config_that_cannot_be_read_is_said(run):
    (run / "config.json").write_text("{")
    with pytest.raises(RunError, match="config.json of run cannot be read"):
        train(SMOKE, DATA, run)


def test_the_recorded_threads_are_used_again(run, whole):
    chosen = json.loads((run / "config.json").read_text())["chosen"]
    assert chosen == {"threads": 1, "precision": "fp32", "device": "cpu"}
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert files(train(replace(SMOKE, threads=None), DATA, run)) == whole
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_full_disk_ends_the_run_with_a_sentence_and_loses_nothing(tmp_path, whole):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        asked = iter([False] * 3 + [True])
        train(SMOKE, DATA, disk / "run", should_stop=lambda: next(asked))
        left = shutil.disk_usage(disk).free
        (disk / "ballast").write_bytes(b"x" * (left - 100_000))
        before = {path.name: path.read_bytes() for path in checkpoints(disk / "run" / "checkpoints")}
        with pytest.raises(RunError, match="The checkpoint of step 6 was not written.*full"):
            train(SMOKE, DATA, disk / "run")
        assert {path.name: path.read_bytes() for path in checkpoints(disk / "run" / "checkpoints")} == before
        assert not list((disk / "run" / "checkpoints").glob("*.tmp"))
        (disk / "ballast").unlink()
        assert files(train(SMOKE, DATA, disk / "run")) == whole
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="was not written: not a directory"):
        save_checkpoint(tmp_path / "file" / "checkpoints", 1, {})
    with pytest.raises(RunError, match="is not an empty folder"):
        train(SMOKE, DATA, tmp_path / "file")


def test_what_a_kill_left_half_written_goes_and_is_never_read(run, whole):
    newest = checkpoints(run / "checkpoints")[-1]
    half = newest.with_name("step-00000006.pt.0a1b2c3d.tmp")
    half.write_bytes(newest.read_bytes()[:1000])
    found = load_newest(run / "checkpoints")
    assert found and found[0]["step"] == 4 and found[1] == ""
    assert files(train(SMOKE, DATA, run)) == whole and not half.exists()


def test_a_line_that_was_cut_off_costs_no_other(tmp_path):
    path = tmp_path / "events.jsonl"
    event_writer(path)("step", step=1)
    with path.open("a") as file:
        file.write('{"event": "step", "ti')
    emit = event_writer(path)
    emit("started", step=1)
    assert [event["event"] for event in read_events(path)[0]] == ["step", "started"]


@pytest.mark.parametrize("seed", range(2))
def test_kills_at_any_moment_change_nothing(tmp_path, whole, seed):
    """Half of them while a checkpoint is being written; `benchmarks/kills.py` does many more."""
    patterns = ("*.tmp", "step-*.pt") if seed else ("step-*.pt", "*.tmp")
    run = tmp_path / "run"
    command = [sys.executable, "-m", "memssl_core", "train", "--data", DATA, "--preset", "smoke", "--run-dir", str(run)]
    command += ["--steps", "8", "--save-every", "2", "--probe-images", "20", "--threads", "1", "--workers", str(seed)]
    for pattern in patterns:
        known = {path.name for path in run.rglob(pattern)}
        process = subprocess.Popen(
            command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
        )
        while process.poll() is None and not {p.name for p in (run / "checkpoints").glob(pattern)} - known:
            time.sleep(0.0005)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        for path in checkpoints(run / "checkpoints"):
            load_checkpoint(path)
    assert files(train(SMOKE, DATA, run)) == whole


# --- steps that fail


def poisoned(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The memory of step `at` holds a value that is not finite."""

    def step(state, batch, **how):
        if state.step == at:
            state.memory.vectors[3, 0] = torch.nan
        return train_step(state, batch, **how)

    monkeypatch.setattr("memssl_core.training.loop.train_step", step)


def test_a_bad_step_is_kept_and_can_be_run_again(run, monkeypatch, capsys):
    poisoned(monkeypatch, 5)
    with pytest.raises(RunError, match="The loss is not finite at step 5; this step was not applied"):
        train(SMOKE, DATA, run)
    status = JobFolder(run).status()
    assert status and status["state"] == "failed" and "Try a lower lr" in status["message"]
    assert load_checkpoint(checkpoints(run / "checkpoints")[-1])["step"] == 4
    (capsule,) = (run / "bad-steps").iterdir()
    assert capsule.name == "step-00000005-rank-0.pt"
    assert main(["replay", str(capsule), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["step"] == 5 and told["loss"] is None and told["memory_bad_rows"] == [3]
    assert told["bad_modules"] == [] and told["bad_weights"] == [] and told["bad_gradients"] and told["largest"]
    assert main(["replay", str(capsule)]) == 0
    assert "Not finite: memory slots 3" in capsys.readouterr().out


def test_a_bad_step_without_its_cause_is_finite_again(run, monkeypatch, tmp_path):
    """The loss of the capsule is that of the step itself."""
    from memssl_core.training.capsule import replay

    losses, asked = [], iter([False, True])
    hear = lambda event, **facts: losses.append(facts["loss"]) if event == "step" else None
    twin = shutil.copytree(run, tmp_path / "twin")
    train(SMOKE, DATA, twin, listen=hear, should_stop=lambda: next(asked))
    poisoned(monkeypatch, 5)
    with pytest.raises(RunError, match="not finite at step 5"):
        train(SMOKE, DATA, run)
    (capsule,) = (run / "bad-steps").iterdir()
    state = torch.load(capsule, weights_only=True)
    state["vectors"][3, 0] = 0.1
    torch.save(state, tmp_path / "mended.pt")
    told = replay(tmp_path / "mended.pt")
    assert told["loss"] == pytest.approx(losses[-1], abs=0.02)
    assert told["bad_gradients"] == [] and told["grad_norm"] > 0


@pytest.mark.parametrize("content", [b"", b"text", {"step": 1}])
def test_what_is_no_bad_step_is_said(tmp_path, capsys, content):
    path = tmp_path / "x.pt"
    torch.save(content, path) if isinstance(content, dict) else path.write_bytes(content)
    assert main(["replay", str(path)]) == 1
    assert "give a file of a run's bad-steps folder" in capsys.readouterr().err


def test_the_best_checkpoints_stay(tmp_path):
    figures = iter([10.0, 30.0, 20.0, 25.0, 25.0])

    class Scripted(Probe):
        def __call__(self, backbone, device):
            return {"knn_top1": next(figures), "rankme": 3.0}, torch.ones(4, embedding_width(backbone))

    patch = pytest.MonkeyPatch()
    patch.setattr("memssl_core.training.loop.Probe", Scripted)
    try:
        train(replace(SMOKE, probe_every=2, save_every=100), DATA, tmp_path / "run")
    finally:
        patch.undo()
    folder = tmp_path / "run" / "checkpoints"
    assert load_checkpoint(folder / "best-knn_top1.pt")["step"] == 2
    assert load_checkpoint(folder / "best-knn_top1.pt")["best"]["knn_top1"] == [30.0, 2]
    assert load_checkpoint(folder / "best-rankme.pt")["step"] == 2
