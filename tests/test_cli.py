from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from memssl_core.cli import main
from memssl_core.data.drawn import draw
from memssl_core.jobs import read_events


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


WRONG = [(), ("dance",), ("train",), ("train", "--data", "x"), ("draw", "drawn:0:1", "--oot", "y")]


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
