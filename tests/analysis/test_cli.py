"""The command line: results on standard output, talk on standard error; exit 0, 1 for a mistake, 2 for wrong usage."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

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
        np.testing.assert_array_equal(file["norms"], expected.norms)
        assert "rollout" not in file
    assert decode_image(tmp_path / "maps.png").width > 900


def test_attention_as_a_table(workbench, folder, picture_file, tmp_path):
    words = ["attention", str(picture_file), "--model", str(folder), "--layer", "1", "--query", "3;cls"]
    assert cli.main([*words, "--out", str(tmp_path / "rows.csv")]) == 0
    with (tmp_path / "rows.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    found = workbench.attention(picture_file, 1, [3, "cls"])
    maps = found.maps().mean(1)
    assert list(lines[0]) == ["row", "column", "x_px", "y_px", "mean", "max", "head_0", "head_1"]
    assert len(lines) == maps[0].size
    for patch, line in enumerate(lines):
        row, column = divmod(patch, found.grid[1])
        assert (int(line["row"]), int(line["column"])) == (row, column)
        assert (float(line["x_px"]), float(line["y_px"])) == pytest.approx(found.frame.centre_of(patch), abs=0.01)
        heads = maps[:, row, column]
        told = [float(line[name]) for name in ("mean", "max", "head_0", "head_1")]
        np.testing.assert_allclose(told, [heads.mean(), heads.max(), *heads], rtol=1e-6)


SHOWN = [
    "mean",
    "max",
    "1",
    "norms",
    "rollout --start 1",
    "coloured --mass 0.6",
    "coloured --heads 1,-,0",
    "0 --mass 0.3",
]


def test_each_map_is_a_picture_of_its_own(folder, picture_file, tmp_path):
    drawn = {}
    for show in SHOWN:
        words = ["attention", str(picture_file), "--model", str(folder), "--show", *show.split()]
        assert cli.main([*words, "--out", str(tmp_path / "map.png")]) == 0
        drawn[show] = decode_image(tmp_path / "map.png")
        assert drawn[show].size == (130, 90)
    assert len({image.tobytes() for image in drawn.values()}) == len(SHOWN)


def test_rollout_goes_into_the_file(workbench, folder, picture_file, tmp_path):
    words = ["attention", str(picture_file), "--model", str(folder), "--show", "rollout", "--start", "1"]
    assert cli.main([*words, "--query", "5", "--out", str(tmp_path / "rows.NPZ")]) == 0
    with np.load(tmp_path / "rows.NPZ") as file:
        np.testing.assert_array_equal(file["rollout"], workbench.rollout(picture_file, 5, start=1).rows)


def test_heads(workbench, folder, picture_file, tmp_path, capsys):
    words = ["heads", str(picture_file), "--model", str(folder), "--top", "5"]
    assert cli.main([*words, "--json", "--out", str(tmp_path / "heads.csv")]) == 0
    table = workbench.head_table(picture_file, 5)
    assert json.loads(capsys.readouterr().out) == table.summary()
    lines = (tmp_path / "heads.csv").read_text().splitlines()
    assert lines[0] == "block,head,kl,kept,moved" and len(lines) == 7 and lines[-1].startswith("2,1,")
    assert cli.main([*words, "--out", str(tmp_path / "heads.png")]) == 0
    told = capsys.readouterr().out
    assert told.startswith("KL in nats over 43 memories at temperature 0.07; ") and "of the 5 strongest" in told
    assert decode_image(tmp_path / "heads.png").width > 300


def test_heads_of_a_model_without_memory(picture_file, tmp_path, capsys):
    words = ["heads", str(picture_file), "--model", "random:vit_tiny_patch16_224", "--out", str(tmp_path / "h.csv")]
    assert cli.main(words) == 0
    assert capsys.readouterr().out.startswith("1 - cosine of the embedding")
    assert (tmp_path / "h.csv").read_text().splitlines()[1].startswith("0,0,,,")


def test_pca(workbench, folder, picture_file, tmp_path, capsys):
    words = ["pca", str(picture_file), str(picture_file), "--model", str(folder), "--size", "96", "--foreground"]
    assert cli.main([*words, "--facet", "value", "--layer", "1", "--out", str(tmp_path / "p.npz"), "--json"]) == 0
    found = workbench.pca(picture_file, picture_file, "value", 1, 96, foreground=True)
    told = json.loads(capsys.readouterr().out)
    assert told["explained"] == found.explained.tolist() and told["grids"] == [list(found.front_a.shape)] * 2
    with np.load(tmp_path / "p.npz") as file:
        np.testing.assert_array_equal(file["components_b"], found.b)
        np.testing.assert_array_equal(file["front_a"], found.front_a)
    assert cli.main(["pca", str(picture_file), "--model", str(folder), "--out", str(tmp_path / "p.png")]) == 0
    assert decode_image(tmp_path / "p.png").width > 1000 and "the foreground" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_pictures_written_hold_nothing_of_where_one_was_taken(folder, picture, tmp_path, suffix):
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "a camera"
    exif[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N", ExifTags.GPS.GPSLatitude: (47.0, 3.0, 4.0)}
    picture.save(tmp_path / "taken.jpg", exif=exif)
    assert Image.open(tmp_path / "taken.jpg").getexif()
    shown = [["--show", name] for name in ("all", "mean", "coloured", "norms")]
    for words in [*(["attention", *show] for show in shown), ["pca"], ["heads"]]:
        out = tmp_path / f"written{suffix}"
        assert cli.main([*words, str(tmp_path / "taken.jpg"), "--model", str(folder), "--out", str(out)]) == 0
        with Image.open(out) as written:
            assert not written.getexif() and "exif" not in written.info
        assert b"a camera" not in out.read_bytes()


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
        (["attention", "x.png", "--show", "3", "--model", "random:vit_tiny_patch16_224"], "an attention head, 0 to 2"),
        (["attention", "x.png", "--show", "dog", "--model", "random:resnet10t"], "no map 'dog' to show; choose all,"),
        (["attention", "x.png", "--mass", "0", "--model", "random:vit_tiny_patch16_224"], "a share above 0"),
        (["heads", "x.png", "--out", "x.npz"], "x.npz has an ending"),
        (["heads", "absent.png", "--model", "random:vit_tiny_patch16_224"], "absent.png"),
        (["pca", "x.png", "--out", "x.csv"], "x.csv has an ending"),
        (["pca", "absent.png", "--facet", "key", "--model", "random:resnet10t"], "no key facet"),
    ],
)
def test_a_mistake_is_one_sentence_on_standard_error(words, sentence, capsys):
    assert cli.main(words) == 1
    told = capsys.readouterr()
    assert sentence in told.err and told.out == "" and told.err.count("\n") == 1


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--show", "rollout", "--start", "2", "--layer", "1"], "Block 1 comes before block 2"),
        (["--show", "rollout", "--query", "1;2"], "2 queries were asked for"),
        (["--show", "coloured", "--heads", "0,0"], "heads is '0,0'; name up to 7 different heads, 0 to 1"),
        (["--show", "coloured", "--heads", "2"], "heads is '2'"),
    ],
)
def test_maps_that_cannot_be_drawn(folder, picture_file, words, sentence, capsys):
    assert cli.main(["attention", str(picture_file), "--model", str(folder), *words]) == 1
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
