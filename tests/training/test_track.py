from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from memssl_core.errors import MemsslError
from memssl_core.training.terminal import progress
from memssl_core.training.track import tracker

CONFIG = {"lr": 0.008, "global_scale": (0.4, 1.0)}


class Calls(list):
    """What a library was asked to do, in order."""

    def __call__(self, *args, **named):
        self.append((*args, named))


def fake_trackio(calls):
    """Signatures of trackio 0.43."""

    def init(project, name=None, group=None, space_id=None, config=None, resume="never"):
        calls("init", project=project, name=name, config=config, resume=resume)

    log = lambda metrics, step=None: calls("log", metrics, step)
    return SimpleNamespace(init=init, log=log, finish=lambda: calls("finish"))


def fake_wandb(calls):
    """Signatures of wandb 0.31."""

    class Run:
        def define_metric(self, name, step_metric=None, step_sync=None, hidden=None, summary=None, overwrite=None):
            calls("define_metric", name, step_metric)

        def log(self, data, step=None, commit=None):
            assert step is None  # wandb drops what goes back
            calls("log", {k: v for k, v in data.items() if k != "step"}, data["step"])

        def finish(self, exit_code=None):
            calls("finish")

    def init(entity=None, project=None, dir=None, id=None, name=None, config=None, resume=None):
        calls("init", project=project, id=id, name=name, dir=dir, config=config, resume=resume)
        return Run()

    return SimpleNamespace(init=init)


def fake_tensorboard(calls):
    """Signatures of torch.utils.tensorboard in torch 2.15."""

    class SummaryWriter:
        def __init__(self, log_dir=None, comment="", purge_step=None, max_queue=10, flush_secs=120, filename_suffix=""):
            calls("init", log_dir=log_dir, purge_step=purge_step)

        def add_text(self, tag, text_string, global_step=None, walltime=None):
            calls("text", tag, text_string)

        def add_scalar(self, tag, scalar_value, global_step=None, walltime=None, new_style=False):
            calls("log", {tag: scalar_value}, global_step)

        def close(self):
            calls("finish")

    return SimpleNamespace(SummaryWriter=SummaryWriter)


MODULES = {
    "trackio": ("trackio", fake_trackio),
    "tensorboard": ("torch.utils.tensorboard", fake_tensorboard),
    "wandb": ("wandb", fake_wandb),
}


@pytest.fixture
def library(monkeypatch):
    def put(kind):
        calls = Calls()
        name, fake = MODULES[kind]
        monkeypatch.setitem(sys.modules, name, fake(calls))
        return calls

    return put


def story(listen, first, last, end):
    listen("started", step=first, steps=9, resumed=first > 0, images=64)
    for step in range(first + 1, last + 1):
        listen("step", step=step, loss=4.0, spread=float("nan"), device="cpu", is_last=False)
    listen("probe", step=last, rankme=5, knn_top1=None)
    listen("alarm", step=last, message="look")
    listen(end, step=last)


@pytest.mark.parametrize("kind", MODULES)
def test_numbers_go_out_and_a_run_that_goes_on_is_one_run(kind, library, tmp_path):
    calls = library(kind)
    story(tracker(kind, tmp_path, CONFIG), 0, 2, "stopped")
    logged = [call[1:3] for call in calls if call[0] == "log"]
    assert logged == [({"train/loss": 4.0}, 1), ({"train/loss": 4.0}, 2), ({"probe/rankme": 5.0}, 2)]
    assert [call[0] for call in calls].count("finish") == 1 and calls[-1][0] == "finish"
    again = library(kind)
    story(tracker(kind, tmp_path, CONFIG), 1, 3, "finished")
    first, second = calls[0][-1], again[0][-1]
    if kind == "tensorboard":
        assert first == {"log_dir": str(tmp_path / "tensorboard"), "purge_step": None}
        assert second == {**first, "purge_step": 2}  # what was logged from there on is not to be seen twice
        assert '"lr": 0.008' in calls[1][2] and "text" not in [call[0] for call in again]
    else:
        assert first == second and first["resume"] == "allow" and first["project"] == "memssl"
        assert first["config"] == {"lr": 0.008, "global_scale": [0.4, 1.0]}
        run_id = json.loads((tmp_path / "tracker.json").read_text())["id"]
        assert run_id in (first.get("id"), first["name"].removeprefix(f"{tmp_path.name}-"))
    if kind == "wandb":
        assert [call[1:3] for call in calls if call[0] == "define_metric"] == [("step", None), ("*", "step")]


def test_nothing_is_written_before_the_run_has_begun(library, tmp_path):
    calls = library("wandb")
    listen = tracker("wandb", tmp_path / "run", CONFIG)
    listen.finish()
    assert calls == [] and not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", MODULES)
def test_a_missing_library_is_named_with_what_to_install(kind, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, MODULES[kind][0], None)
    with pytest.raises(MemsslError, match=f"--track {kind} needs the package {kind}.*pip install {kind}"):
        tracker(kind, tmp_path, CONFIG)
    with pytest.raises(MemsslError, match="choose trackio, tensorboard, wandb"):
        tracker("notebook", tmp_path, CONFIG)


def test_a_tracker_that_fails_does_not_end_a_training(library, monkeypatch, tmp_path, capsys):
    calls = library("trackio")
    listen = tracker("trackio", tmp_path, CONFIG)
    listen("started", step=0)

    def broken(metrics, step=None):
        print("a word of the library")
        raise OSError("no network")

    monkeypatch.setattr(sys.modules["trackio"], "log", broken)
    with pytest.warns(UserWarning, match="Tracking has stopped .OSError: no network.. Training goes on"):
        listen("step", step=1, loss=4.0)
    listen("step", step=2, loss=4.0)
    listen("finished", step=2)
    assert [call[0] for call in calls] == ["init"]
    assert capsys.readouterr().out == ""  # standard output is for results


def test_the_terminal_tells_what_was_restored_and_what_is_wrong(capsys):
    with progress() as listen:
        sentence = "Restored step 400: weights, optimiser, memory (4 096 of 4 096 slots), schedule."
        listen("started", step=400, steps=800, images=64, resumed=True, restored=sentence)
        listen("probe", step=400, rankme=8.125, knn_top1=23.5, drift=0.9712, drift_steps=100, best=None)
        listen("alarm", step=400, message="Plateau: [nothing] is learned.")
    told = capsys.readouterr().err
    assert "Going on at step 400 of 800, 64 pictures." in told and "Restored step 400" in told
    assert "rankme 8.12 · knn_top1 23.5 · drift 0.971 · drift_steps 100" in " ".join(told.split())
    assert "Plateau: [nothing] is learned." in told
