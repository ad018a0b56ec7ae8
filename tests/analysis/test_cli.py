"""The command line: results on standard output, talk on standard error; exit 0, 1 for a mistake, 2 for wrong usage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from analysis import cli
from memssl_core.data.images import decode_image

ROOT = Path(__file__).resolve().parents[2]


def test_attention_as_json_equals_the_workbench(workbench, folder, picture_file, capsys):
    words = ["attention", str(picture_file), "--model", str(folder), "--layer", "1", "--query", "60,40;cls", "--json"]
    assert cli.main(words) == 0
    expected = workbench.attention(picture_file, 1, [(60, 40), "cls"]).summary()
    assert json.loads(capsys.readouterr().out) == expected


def test_attention_for_people(folder, picture_file, capsys):
    assert cli.main(["attention", str(picture_file), "--model", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("transformer block 2, 11×16 patches") and len(lines) == 4


def test_attention_files(workbench, folder, picture_file, tmp_path, capsys):
    words = ["attention", str(picture_file), "--model", str(folder), "--out"]
    assert cli.main([*words, str(tmp_path / "rows.npz")]) == cli.main([*words, str(tmp_path / "maps.png")]) == 0
    told = capsys.readouterr()
    assert "wrote" in told.err and "wrote" not in told.out
    with np.load(tmp_path / "rows.npz") as file:
        expected = workbench.attention(picture_file)
        np.testing.assert_array_equal(file["rows"], expected.rows)
        assert tuple(file["grid"]) == expected.grid and file["n_prefix"] == 1
    assert decode_image(tmp_path / "maps.png").width > 900


def test_neighbours(workbench, folder, picture_file, tmp_path, capsys):
    words = ["neighbours", str(picture_file), "--model", str(folder), "--space", "embedding", "--k", "4"]
    assert cli.main([*words, "--json", "--out", str(tmp_path / "near.png")]) == 0
    assert json.loads(capsys.readouterr().out) == workbench.neighbours(picture_file, "embedding", 4).records()
    assert decode_image(tmp_path / "near.png").width > 400
    assert cli.main(words) == 0
    assert "4 nearest slots in embedding space" in capsys.readouterr().out


def test_matches(workbench, folder, picture_file, tmp_path, capsys):
    words = ["match", str(picture_file), str(picture_file), "--model", str(folder), "--size", "64", "--n", "7"]
    assert cli.main([*words, "--json", "--out", str(tmp_path / "pair.png")]) == 0
    assert json.loads(capsys.readouterr().out) == workbench.match(picture_file, picture_file, n=7, size=64).summary()
    assert decode_image(tmp_path / "pair.png").width > 1200
    assert (
        cli.main([*words, "--facet", "value", "--layer", "0", "--no-position", "--out", str(tmp_path / "p.csv")]) == 0
    )
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 8
    assert capsys.readouterr().out.startswith("7 matches, value of layer 0, rule mutual")


@pytest.mark.parametrize("seed", range(4))
def test_a_check_counts_all_matches_however_few_are_shown(folder, picture_file, capsys, seed):
    words = [
        "match",
        str(picture_file),
        "--check",
        "crops",
        "--seed",
        str(seed),
        "--model",
        str(folder),
        "--size",
        "64",
    ]
    told = []
    for shown in ([], ["--n", "1"]):
        assert cli.main([*words, *shown]) == 0
        told.append(capsys.readouterr().out.splitlines()[-1])
    assert told[0] == told[1] and told[0].startswith("of all matches right: ")
    assert cli.main([*words, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["accuracy"]) == {
        "acc@0",
        "acc@1",
        "acc@2",
        "end_point_px",
        "coverage",
    }


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["attention", "absent.png", "--model", "random:vit_tiny_patch16_224"], "absent.png"),
        (["attention", "absent.png", "--model", "ftp:x/y"], "give one of"),
        (["attention", "x.png", "--out", "x.gif"], "x.gif has an ending"),
        (["match", "x.png"], "name a second one"),
        (["match", "x.png", "y.png", "--check", "crops"], "name a second one"),
        (["match", "x.png", "y.png", "--out", "x.npz"], "x.npz has an ending"),
        (["neighbours", "absent.png", "--model", "random:vit_tiny_patch16_224"], "no memory"),
        (["attention", "x.png", "--query", "dog", "--model", "random:vit_tiny_patch16_224"], "'dog' is no query"),
    ],
)
def test_a_mistake_is_one_sentence_on_standard_error(words, sentence, capsys):
    assert cli.main(words) == 1
    told = capsys.readouterr()
    assert sentence in told.err and told.out == "" and told.err.count("\n") == 1


def test_a_folder_that_cannot_be_written_to(folder, picture_file, tmp_path, capsys):
    words = ["attention", str(picture_file), "--model", str(folder), "--out", str(tmp_path / "absent" / "a.png")]
    assert cli.main(words) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_the_module_runs(folder, picture_file):
    words = [sys.executable, "-m", "analysis", "neighbours", str(picture_file), "--model", str(folder), "--json"]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    assert len(json.loads(ran.stdout)) == 20


def test_wrong_usage_is_two(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["neighbours", "x.png", "--space", "map"])
    assert left.value.code == 2
