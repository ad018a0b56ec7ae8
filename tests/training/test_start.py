"""Runs as processes of their own: named, started, queued, shared, stopped, killed, taken up again, renamed, deleted."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tyro
from hypothesis import assume, given
from hypothesis import strategies as st

from memssl_core import cli
from memssl_core.config import PRESETS, TrainConfig
from memssl_core.errors import ConfigError, RunError
from memssl_core.jobs import JobFolder, read_events
from memssl_core.training import start
from memssl_core.training.checkpoint import checkpoints
from memssl_core.training.start import (
    checked_run_name,
    delete_run,
    failures_told,
    limited,
    rename_run,
    resume_run,
    settings_of,
    start_run,
    train_argv,
    your_turn,
)

TINY = replace(
    PRESETS["smoke"], threads=1, steps=4, batch_size=8, memory_slots=64, block_size=16, probe_images=10, save_every=2
)
LONG = replace(TINY, steps=100_000)
DATA = "drawn:0:32:64"
ROOT = Path(__file__).resolve().parents[2]
never = lambda: False


@pytest.fixture
def runs(tmp_path):
    """A folder of runs; what still trains in it at the end is killed."""
    yield tmp_path / "runs"
    for folder in (tmp_path / "runs").glob("*"):
        JobFolder(folder).kill()


def begin(folder, config=TINY, data=DATA, **asked):
    return start_run(folder, config, data, preset="smoke", **asked)


def until(job, holds, seconds=120):
    """The first status of the job of which `holds` is true; a string is a state."""
    end = time.monotonic() + seconds
    wanted = (lambda told: told.get("state") == holds) if isinstance(holds, str) else holds
    while time.monotonic() < end:
        if (told := job.status()) and wanted(told):
            return told
        time.sleep(0.1)
    raise AssertionError(f"{job.status()}\n{job.log_tail()}")


# Names


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "-r",
        "a/b",
        "../a",
        "/etc",
        "a\\b",
        "a b",
        "a\n",
        "a\0",
        "è",
        "a" * 81,
        "x@3",
        "~",
        "$HOME",
    ],
)
def test_hostile_names_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="choose another name"):
        checked_run_name(tmp_path, name)


def test_a_name_that_is_taken_is_refused_be_it_by_a_link_to_nowhere(tmp_path):
    assert checked_run_name(tmp_path, "A.b-c_1") == tmp_path / "A.b-c_1"
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="run named link already"):
        checked_run_name(tmp_path, "link")


# The command line says what the config says

words = st.text(max_size=12)
VALUES = {
    "backbone": words,
    "device": words,
    "optimizer": st.sampled_from(["adamw", "lars", "sgd"]),
    "precision": st.sampled_from(["auto", "fp32", "bf16"]),
    "seed": st.integers(-(10**12), 10**12),
    "threads": st.none() | st.integers(1, 64),
    "steps": st.none() | st.integers(1, 10**9),
    "patch_size": st.none() | st.integers(1, 64),
    "checkpoint_blocks": st.booleans(),
    "head_batch_norm": st.booleans(),
    "lr": st.floats(1e-300, 1e300),
    "min_lr": st.floats(0, 1e-3),
    "drop_path": st.floats(0, 1, exclude_max=True),
    "epochs": st.floats(1e-3, 1e6),
    "global_scale": st.tuples(st.floats(0.01, 0.5), st.floats(0.5, 1)),
    "blur_radius": st.tuples(st.floats(0, 1), st.floats(1, 3)),
    "workers": st.integers(0, 99),
    "batch_size": st.integers(1, 10**6),
}


@given(
    preset=st.sampled_from(sorted(PRESETS)), changes=st.fixed_dictionaries({}, optional=VALUES), data=words, run=words
)
def test_the_command_line_gives_back_every_config(preset, changes, data, run):
    try:
        config = replace(PRESETS[preset], **changes)
    except ConfigError:
        assume(False)
    wanted = []
    argv = train_argv(config, data, Path("runs") / run, preset=preset)
    told = tyro_reads(argv)
    wanted = (told.config, told.data, str(told.run_dir), told.preset)
    assert wanted == (config, data, str(Path("runs") / run), preset)


def tyro_reads(argv):
    return cli._with_preset("train", argv, lambda config, preset: cli.Train(tyro.MISSING, tyro.MISSING, config, preset))


def test_only_what_differs_from_the_preset_is_said():
    assert train_argv(PRESETS["demo"], "drawn:0:9", "runs/a", preset="demo") == [
        *("--data", "drawn:0:9", "--run-dir", "runs/a", "--preset", "demo")
    ]
    changed = replace(PRESETS["demo"], lr=0.5, head_batch_norm=False, grey=0.0, global_scale=(0.5, 1.0), steps=None)
    assert train_argv(changed, "-x", "r", preset="demo")[4:] == [
        *("demo", "--no-head-batch-norm", "--global-scale", "0.5", "1.0", "--grey", "0.0", "--steps", "None"),
        *("--lr", "0.5"),
    ]


def test_what_no_command_line_can_carry_is_refused_before_anything_is_made(runs):
    for data in ("a\0b", "\ud800"):
        with pytest.raises(ConfigError, match="no command line can carry"):
            begin(runs / "a", data=data)
    assert not runs.exists()


def test_a_run_leaves_cores_to_others_where_it_trains_on_the_cpu(monkeypatch):
    auto = replace(PRESETS["vit-s16-800ep"], device="cpu")
    for cores, processes, expected in (
        (1, 1, (1, 1)),
        (2, 1, (1, 1)),
        (8, 1, (7, 1)),
        (8, 2, (3, 1)),
        (64, 2, (31, 1)),
    ):
        monkeypatch.setattr(start, "cores", lambda cores=cores: cores)
        told = limited(auto, processes=processes)
        assert (told.threads, told.workers) == expected
    told = limited(replace(auto, threads=4, workers=9))
    assert (told.threads, told.workers) == (4, 9) and limited(replace(auto, workers=0)).workers == 0
    assert limited(replace(auto, device="cuda:1")) == replace(auto, device="cuda:1")


# A run from its start to its end


def test_a_run_is_started_found_finished_renamed_and_deleted(runs):
    job = begin(runs / "first", hours=1.0)
    with pytest.raises(RunError, match="run named first already"):
        begin(runs / "first")
    for refused in (lambda: resume_run(runs / "first"), lambda: rename_run(runs / "first", "b")):
        with pytest.raises(RunError, match="first has not ended yet"):
            refused()
    with pytest.raises(RunError, match="first has not ended yet"):
        delete_run(runs / "first")
    told = until(job, "finished")
    facts = ("kind", "title", "preset", "processes", "data", "step", "steps")
    assert [told[name] for name in facts] == ["train", "first", "smoke", 1, DATA, 4, 4]
    assert told["settings"] == json.loads(json.dumps(asdict(TINY))) and "Starting at step 0" in job.log_tail()
    assert settings_of(runs / "first") == (replace(TINY, threads=None), DATA, "smoke")  # the loop keeps them apart
    assert json.loads((runs / "first" / "config.json").read_text())["chosen"]["threads"] == 1
    with pytest.raises(RunError, match="first is finished"):
        resume_run(runs / "first")
    (runs / "taken").mkdir()
    for name in ("taken", "../b"):
        with pytest.raises(ConfigError):
            rename_run(runs / "first", name)
    (runs / "link").symlink_to(runs / "first")
    for action in (delete_run, lambda folder: rename_run(folder, "b"), resume_run):
        for folder in (runs / "link", runs / "nowhere", runs / "taken"):
            with pytest.raises(RunError, match="no training run named"):
                action(folder)
    assert rename_run(runs / "first", "second") == runs / "second"
    assert JobFolder(runs / "second").status()["title"] == "second" and not (runs / "first").exists()
    (runs / "link").unlink()
    delete_run(runs / "second")
    assert sorted(path.name for path in runs.iterdir()) == [".turns", "taken"]


def test_runs_queue_or_share_and_a_stopped_killed_or_failed_one_goes_on(runs, tmp_path):
    photos = str(tmp_path / "photos")
    long = begin(runs / "long", LONG)
    until(long, "running")
    sharing, waiting = begin(runs / "sharing", at_once=2), begin(runs / "waiting", data=photos)
    told = until(waiting, lambda told: "another run" in told.get("words", ""))
    assert told["state"] == "waiting" and told["words"] == "waiting for another run to end (long)"
    waiting.request_stop()
    told = until(waiting, "stopped")
    assert told["message"] == "Stopped before its turn came." and not (runs / "waiting" / "config.json").exists()
    until(sharing, "finished")
    assert long.status()["state"] == "running"

    resume_run(runs / "waiting")  # from job.json, as it has no config yet
    until(waiting, lambda told: "another run" in told.get("words", ""))
    until(long, lambda told: bool(checkpoints(runs / "long" / "checkpoints")))
    assert long.kill() and long.status()["state"] == "lost" and not long.kill()
    told = until(waiting, "failed")  # its turn came with the other's death, but there is nothing to train on
    assert "there is no such folder or file" in told["message"] and "Traceback" not in waiting.log_tail()
    assert settings_of(runs / "waiting") == (TINY, photos, "smoke")

    assert cli.main(["draw", DATA, "--out", photos]) == 0
    before = long.status()
    resume_run(runs / "waiting")
    resume_run(runs / "long", at_once=None)
    long.request_stop()  # before it has even looked into its folder
    until(long, "stopped")
    until(waiting, "finished")
    events = read_events(long.events)[0]
    begun = [event for event in events if event["event"] == "started"]
    assert [event["resumed"] for event in begun] == [False, True] and events[-1]["step"] == begun[1]["step"] + 1
    assert (long.status()["started_s"], long.status()["settings"]) == (before["started_s"], before["settings"])


def test_a_mistake_of_ours_is_told_without_its_insides(runs):
    job = JobFolder(runs / "a").create()
    (runs / "a" / "job.json").write_text('{"kind": "train"}')
    job.write_status("waiting", words="starting")
    with pytest.raises(ZeroDivisionError), failures_told(runs / "a"):
        raise ZeroDivisionError("/secret")
    told = job.status()
    assert told["state"] == "failed" and told["message"].endswith("its log says more.")
    with pytest.raises(RunError), failures_told(runs / "a"):
        raise RunError("Later.")
    assert job.status() == told  # the first reason stands


def test_processes_of_one_run_wait_for_its_turn_together(runs):
    with your_turn(runs / "mine", 1, never):
        job = begin(runs / "pair", replace(TINY, steps=2), processes=2)
        until(job, lambda told: told.get("words") == "waiting for another run to end (mine)")
        time.sleep(1)
        assert job.status()["state"] == "waiting"
    until(job, "finished")
    assert read_events(job.events)[0][0]["processes"] == 2


# The queue


def waiting_in(runs, name, at_once=1):
    """your_turn of a run that is asked to stop as soon as it has to wait; whether its turn came."""
    try:
        with your_turn(runs / name, at_once, lambda: True, device="cpu"):
            return True
    except RunError:
        return False


def test_first_come_first_served_for_each_kind_of_device(runs):
    runs.mkdir()
    with your_turn(runs / "a", 1, never, device="cpu"):
        assert not waiting_in(runs, "b") and waiting_in(runs, "b", at_once=2)
        with your_turn(runs / "gpu", 1, never, device="cuda:0"):
            assert not waiting_in(runs, "b")
        with your_turn(runs / "b", 2, never, device="cpu"):
            assert not waiting_in(runs, "c", at_once=2) and waiting_in(runs, "c", at_once=3)
            refused, told = pytest.raises(RunError, match="Stopped before"), failures_told(runs / "d")
            with refused, told, your_turn(runs / "d", 1, lambda: True, device="cpu"):
                raise AssertionError("it was not its turn")
            assert not (runs / "d").exists()  # nothing stays of a folder that was made to wait in
    assert waiting_in(runs, "c")


def test_a_place_in_the_queue_goes_with_its_process(runs):
    runs.mkdir()
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom memssl_core.training.start import your_turn\n"
        "with your_turn(Path(sys.argv[1]), 1, lambda: False, device='cpu'):\n"
        "    print('mine', flush=True)\n    time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(runs / "other")]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    try:
        other.stdout.readline()
        assert not waiting_in(runs, "a")
    finally:
        other.kill()
        other.wait()
    assert waiting_in(runs, "a")


def test_a_stop_that_was_asked_of_another_process_is_not_obeyed(runs):
    job = JobFolder(runs / "a").create()
    job.request_stop()
    with your_turn(runs / "a", 1, never, device="cpu"):
        assert not job.stop_requested()
        job.request_stop()
        job.clear_requests()  # as the trainer does when it begins
        assert job.stop_requested()


# Settings of runs


def stored(folder, config, **more):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"data": DATA, **asdict(config), **more}))
    return folder


@given(changes=st.fixed_dictionaries({}, optional=VALUES), preset=st.sampled_from(sorted(PRESETS)))
def test_settings_are_read_as_they_were_written(tmp_path_factory, changes, preset):
    try:
        config = replace(PRESETS[preset], **changes)
    except ConfigError:
        assume(False)
    folder = stored(tmp_path_factory.mktemp("runs") / "a", config, chosen={"threads": 3}, younger=True)
    read, data, nearest = settings_of(folder)
    assert (read, data) == (config, DATA) and nearest in PRESETS
    if not changes:
        assert PRESETS[nearest] == config
    (folder / "job.json").write_text(json.dumps({"preset": preset}))
    assert settings_of(folder)[2] == preset


def test_settings_that_are_older_or_damaged(tmp_path):
    old = {field.name: getattr(TINY, field.name) for field in fields(TrainConfig) if field.name != "snapshot_every"}
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"data": DATA, **old}))
    assert settings_of(folder)[0] == replace(TINY, snapshot_every=TrainConfig().snapshot_every)
    for damage in ({"lr": "x"}, {"lr": -1}, {"lr": None}, {"data": 3}, {"global_scale": 5}, {"batch_size": {}}):
        (folder / "config.json").write_text(json.dumps({"data": DATA, **old, **damage}))
        with pytest.raises(RunError, match=r"settings of a cannot be read"):
            settings_of(folder)
    for text in ("{", "[]", '"x"'):
        (folder / "config.json").write_text(text)
        with pytest.raises(RunError, match=r"settings of a cannot be read"):
            settings_of(folder)


def test_a_run_of_the_command_line_is_gone_on_with_as_it_began(tmp_path, monkeypatch):
    folder, asked = stored(tmp_path / "a", TINY), SimpleNamespace()
    lines = [
        {"event": "started", "step": 0, "time_s": 5.0, "processes": 3},
        {"event": "step", "step": 1, "time_s": 6.0},
    ]
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(start.jobs, "start", lambda argv, **told: asked.__dict__.update(told, argv=argv))
    resume_run(folder)
    assert asked.module == "torch.distributed.run" and asked.argv[:6] == [
        *("--standalone", "--nproc-per-node", "3", "-m", "memssl_core", "train")
    ]
    assert (asked.facts["started_s"], asked.facts["preset"], asked.folder) == (5.0, "smoke", folder)


def test_what_the_disk_refuses_is_one_sentence(tmp_path):
    (tmp_path / "runs").write_text("a file in the way")
    with pytest.raises(RunError, match="not a directory; mend that"):
        begin(tmp_path / "runs" / "a")


def test_a_full_disk_leaves_no_half_started_run(runs, monkeypatch):
    def refuse(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(start.jobs, "write_atomically", refuse)
    with pytest.raises(RunError, match="no space left on device; mend that"):
        begin(runs / "a")
    assert list(runs.iterdir()) == []
