from __future__ import annotations

import json
import os
import signal
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from bundle.checkpoints import dino_full, vit
from bundle.making import small_bundle
from PIL import Image

from memssl_core import open_bundle, open_model
from memssl_core.cli import main
from memssl_core.data.drawn import draw
from memssl_core.jobs import JobFolder, Work, read_events, start


def run(capsys, *argv: object) -> tuple[int, str, str]:
    try:
        status = main([str(word) for word in argv])
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    return status, *capsys.readouterr()


SHORT = ("--preset", "smoke", "--steps", "3", "--batch-size", "6", "--probe-images", "10", "--threads", "1")


def test_drawn_pictures_become_a_class_folder(tmp_path, capsys):
    status, out, _ = run(capsys, "draw", "drawn:3:9:64", "--out", tmp_path / "d", "--sheet", tmp_path / "sheet.png")
    assert status == 0 and out.strip() == str(tmp_path / "d")
    assert Image.open(tmp_path / "sheet.png").size > (64, 64)
    for i in range(9):
        scene = draw(3, i, 64)
        with Image.open(tmp_path / "d" / scene.class_name / f"{i}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), scene.image)
    status, _, err = run(capsys, "draw", "drawn:3:9:64", "--out", tmp_path / "d")
    assert status == 1 and "not empty" in err


WRONG = [(), ("dance",), ("train",), ("train", "--data", "x"), ("draw", "drawn:0:1", "--oot", "y"), ("remember", "x")]


@pytest.mark.parametrize("argv", WRONG)
def test_wrong_usage_ends_with_2(capsys, argv):
    status, out, err = run(capsys, *argv)
    assert status == 2 and not out and err


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--data", "EMPTY"), "no pictures"),
        (("--data", "drawn:0:x"), "drawn:SEED:COUNT"),
        (("--data", "drawn:0:32", "--block-size", "300"), "block_size 300 is larger than memory_slots 256"),
        (("--data", "drawn:0:32", "--backbone", "vit_tini"), "vit_tiny"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(tmp_path, capsys, flags, words):
    (tmp_path / "empty").mkdir()
    flags = [str(tmp_path / "empty") if flag == "EMPTY" else flag for flag in flags]
    status, out, err = run(capsys, "train", *SHORT, *flags, "--run-dir", tmp_path / "run")
    assert status == 1 and not out
    assert words in err and "Traceback" not in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_corrupt_picture_among_good_ones_is_named_counted_and_skipped(tmp_path, capsys):
    for i in range(12):
        folder = tmp_path / "photos" / ("a", "b")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(0, i, 64).image).save(folder / f"{i}.jpg")
    whole = (folder / "5.jpg").read_bytes()
    (folder / "5.jpg").write_bytes(whole[: len(whole) // 2])
    status, out, err = run(capsys, "train", "--data", tmp_path / "photos", *SHORT, "--run-dir", tmp_path / "run")
    assert status == 0, err
    assert (tmp_path / "run" / "bundle" / "config.json").exists()
    skipped = [e for e in read_events(tmp_path / "run" / "events.jsonl")[0] if e["event"] == "skipped_image"]
    assert len(skipped) == 1 and skipped[0]["skipped"] == 1 and "5.jpg" in skipped[0]["message"]
    assert "5.jpg" in err


def test_a_plan_for_people_programs_and_the_page(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MEMSSL_HOME", str(tmp_path / "home"))
    asked = ("plan", "--data", "drawn:0:32:64", *SHORT)
    status, out, _ = run(capsys, *asked, "--quick")
    assert status == 0 and "pictures           32 in 8 classes\n" in out and "speed" not in out
    status, out, _ = run(capsys, *asked, "--quick", "--json", "--processes", "2", "--batch-size", "8")
    told = json.loads(out)
    assert status == 0 and told["measured"] is None
    assert (told["plan"]["steps"], told["plan"]["processes"], told["plan"]["turns"]) == (3, 2, 3 * 8 / 256)
    job = JobFolder(tmp_path / "jobs" / "one")
    status, out, _ = run(capsys, *asked, "--job", job.path)
    assert status == 0 and "pictures/s" in out
    result = json.loads((job.path / "result.json").read_text())
    assert result["measured"]["images_per_s"] > 0 and job.status()["state"] == "finished"
    status, out, err = run(capsys, "plan", "--data", "drawn:0:3", "--preset", "smoke", "--job", job.path)
    assert status == 1 and "cannot run         drawn:0:3 has 3 pictures, fewer than batch_size 16" in out
    assert err == "It cannot run so; see above.\n" and job.status()["state"] == "finished"
    assert json.loads((job.path / "result.json").read_text())["measured"] is None
    assert not (tmp_path / "home" / "runs").exists()


@pytest.mark.parametrize("flag", ["--at-once", "--stop-after-hours"])
@pytest.mark.parametrize("value", ["0", "-1"])
def test_turns_and_hours_are_above_nothing(tmp_path, capsys, flag, value):
    asked = ("train", *SHORT, "--data", "drawn:0:32:64", "--run-dir", tmp_path / "run", f"{flag}={value}")
    status, out, err = run(capsys, *asked)
    assert status in (1, 2) and not out and "must be above 0" in err and not (tmp_path / "run").exists()


def test_a_run_saves_and_stops_when_its_time_is_over(tmp_path, capsys):
    asked = ("train", *SHORT, "--data", "drawn:0:32:64", "--run-dir", tmp_path / "run")
    status, out, err = run(capsys, *asked, "--stop-after-hours", "1e-9", "--at-once", "1")
    assert status == 0 and not out and "The same command goes on" in err
    assert JobFolder(tmp_path / "run").status()["step"] == 1
    status, out, _ = run(capsys, *asked, "--stop-after-hours", "1")
    assert status == 0 and out.strip() == str(tmp_path / "run" / "bundle")


@pytest.fixture
def photographs(tmp_path):
    """21 pictures, the one named broken.jpg unreadable."""
    (tmp_path / "photographs").mkdir()
    for i in range(20):
        Image.fromarray(draw(1, i, 64).image).save(tmp_path / "photographs" / f"{i:02d}.jpg")
    (tmp_path / "photographs" / "broken.jpg").write_bytes(b"no picture")
    return tmp_path / "photographs"


def test_a_model_is_given_a_memory_as_a_job(photographs, tmp_path, capsys):
    model, out, job = "random:test_resnet@2", tmp_path / "given", tmp_path / "jobs" / "one"
    status, told, err = run(capsys, "remember", model, "--data", photographs, "--out", out, "--job", job)
    assert status == 0 and told.strip() == str(out) and "broken.jpg" in err
    bundle = open_bundle(out)
    assert bundle.memory.slots == 20 and "memory" in bundle.readme
    facts = bundle.config["memssl"]["provenance"]
    assert (facts["memory_data"], facts["memory_model"]) == ("photographs", model)
    assert (facts["memory_pictures"], facts["memory_skipped"]) == (20, 1)
    assert facts["memory_model_hash"] == open_model(model).model_hash == bundle.model_hash
    job = JobFolder(job)
    assert job.status()["state"] == "finished" and job.status()["result"] == str(out)
    told = [event for event in read_events(job.events)[0] if event["event"] == "progress"]
    assert (told[-1]["step"], told[-1]["total"]) == (21, 21)


def test_what_lies_in_the_way_is_refused_before_the_work(photographs, tmp_path, capsys):
    for verb in (("remember", "random:no_such_model", "--data", photographs), ("convert", tmp_path / "x.pth")):
        status, out, err = run(capsys, *verb, "--out", photographs)
        assert status == 1 and not out
        assert err == f"{photographs} is not empty and holds no bundle; choose another --out.\n"


@pytest.mark.parametrize("verb, code, words", [("remember", 1, "Stopped; no bundle"), ("embed", 0, "goes on with")])
def test_a_job_that_is_asked_to_stop_says_how_it_stands(verb, code, words, photographs, tmp_path, capsys, monkeypatch):
    job, emit = JobFolder(tmp_path / "jobs" / "one"), Work.emit

    def tell(self, event, *, step, **facts):
        emit(self, event, step=step, **facts)
        job.request_stop()

    monkeypatch.setattr(Work, "emit", tell)
    work = (verb, "random:test_vit", "--data", photographs, "--out", tmp_path / "out", "--job", job.path)
    status, out, err = run(capsys, *work)
    assert status == code and not out and words in err
    assert job.status()["state"] == "stopped" and not (tmp_path / "out" / "config.json").exists()


def test_ctrl_c_ends_a_job_in_one_sentence(tmp_path):
    argv = ["embed", "random:test_vit", "--data", "drawn:0:50000:64", "--out", str(tmp_path / "out")]
    job = start(argv, kind="embed", title="many", root=tmp_path / "jobs")
    end = time.monotonic() + 120
    while not read_events(job.events)[0] and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(job.status()["pid"], signal.SIGINT)
    while (job.status() or {}).get("state") == "running" and time.monotonic() < end:
        time.sleep(0.02)
    assert job.status()["state"] == "stopped"
    told = f"Stopped. The same command goes on with {tmp_path / 'out'}."  # after the status
    while told not in job.log_tail() and time.monotonic() < end:
        time.sleep(0.02)
    assert told in job.log_tail()
    assert "Traceback" not in job.log_tail()


def test_embeddings_are_written_in_parts(photographs, tmp_path, capsys):
    asked = ("embed", "random:test_vit", "--data", photographs, "--out", tmp_path / "e", "--kind", "npy")
    for _ in range(2):
        status, out, _ = run(capsys, *asked)
        assert status == 0 and out.strip() == str(tmp_path / "e")
    assert np.load(tmp_path / "e" / "part-0000-000000.npy").shape == (20, 64)
    assert pq.read_table(tmp_path / "e" / "part-0000-000000.parquet")["uri"].to_pylist()[3] == "03.jpg"


def test_a_checkpoint_becomes_a_bundle(tmp_path, capsys):
    torch.save(dino_full(vit()), tmp_path / "dino.pth")
    flags = ("--family", "dino", "--arch", "vit_tiny", "--dtype", "f32")
    status, out, err = run(capsys, "convert", tmp_path / "dino.pth", "--out", tmp_path / "b", *flags)
    assert status == 0, err
    assert out.strip() == str(tmp_path / "b") and "pickle" in err
    assert open_bundle(tmp_path / "b").config["architecture"] == "vit_tiny_patch16_224"


def test_a_dry_run_of_publish_lists_what_it_would_send(tmp_path, capsys):
    small_bundle().save(tmp_path / "b")
    status, out, _ = run(capsys, "publish", tmp_path / "b", "--repo", "me/model", "--dry-run")
    listed = {line.split()[-1]: int(line.split()[0].replace(",", "")) for line in out.splitlines() if " bytes " in line}
    assert status == 0 and out.splitlines()[-1] == "Nothing was sent; me/model would be private."
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "b").iterdir() if path.name != "README.md"}
    assert sizes.items() <= listed.items() and listed.keys() - sizes.keys() == {"README.md"}


def test_what_needs_no_fetching_is_there(capsys):
    assert run(capsys, "fetch", "random:test_vit")[:2] == (0, "random:test_vit\n")
    status, out, err = run(capsys, "fetch", "timm:test_vit.no_such_tag")
    assert status == 1 and not out and len(err.strip().splitlines()) == 1
