from __future__ import annotations

import pytest

from memssl_core.paths import bundles_dir, home, runs_dir, without_folders


@pytest.mark.parametrize(
    "source, told",
    [
        ("/home/ada/photos", "photos"),
        ("/home/ada/photos/", "photos"),
        ("parquet:/data/a.parquet", "parquet:a.parquet"),
        ("wds:/data/train-{0..9}.tar", "wds:train-{0..9}.tar"),
        ("/home/ada/photos+drawn:0:20", "photos+drawn:0:20"),
        ("bundle:/home/ada/mine", "bundle:mine"),
        ("run:/home/ada/runs/first@200", "run:first@200"),
        ("hf:ada/photos:train", "hf:ada/photos:train"),
        ("hub:ada/model@main", "hub:ada/model@main"),
        ("timm:vit_small_patch16_224.dino", "timm:vit_small_patch16_224.dino"),
        ("embedded", "embedded"),
    ],
)
def test_strangers_read_no_folders(source, told):
    assert without_folders(source) == told


def test_one_variable_moves_everything(monkeypatch, tmp_path):
    monkeypatch.setenv("MEMSSL_HOME", str(tmp_path))
    assert (home(), runs_dir(), bundles_dir()) == (tmp_path, tmp_path / "runs", tmp_path / "bundles")
    monkeypatch.delenv("MEMSSL_HOME")
    assert runs_dir().as_posix() == "runs" and home() != tmp_path
