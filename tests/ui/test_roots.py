"""Declared folders: nothing outside them is listed, chosen or read."""

from __future__ import annotations

from pathlib import Path

import pytest

from memssl_core.errors import ConfigError, DataError
from ui.roots import declared, inside, listing, refuse_links_out, table_inside


@pytest.fixture
def roots(tmp_path: Path) -> dict[str, Path]:
    """photos/{a.jpg, trip/{day 1/b.png, notes.txt}, .hidden/}, links: near -> trip (stays), out -> beside the root."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "secret.png").touch()
    photos = tmp_path / "photos"
    for folder in ("trip/day 1", ".hidden"):
        (photos / folder).mkdir(parents=True)
    for file in ("a.jpg", "trip/day 1/b.png", "trip/notes.txt"):
        (photos / file).touch()
    (photos / "near").symlink_to(photos / "trip")
    (photos / "out").symlink_to(tmp_path / "private")
    return declared([f"photos={photos}"])


def test_a_root_is_a_name_and_a_folder_that_is_there(tmp_path: Path):
    assert declared([f"a={tmp_path}", f"b c={tmp_path}"]) == {"a": tmp_path, "b c": tmp_path}
    for wrong in ("photos", f"={tmp_path}", "photos=", f"a/b={tmp_path}", f"a\n={tmp_path}"):
        with pytest.raises(ConfigError, match="NAME=DIR"):
            declared([wrong])
    with pytest.raises(ConfigError, match="no folder"):
        declared([f"photos={tmp_path}/nowhere"])
    with pytest.raises(ConfigError, match="twice"):
        declared([f"a={tmp_path}", f"a={tmp_path}"])


def test_what_lies_inside_is_listed_and_links_out_are_not(roots: dict[str, Path]):
    told = {"path": "", "folders": ["near", "trip"], "tables": [], "archives": [], "more": 0, "pictures": 1}
    assert listing(roots, "photos", "") == told
    assert listing(roots, "photos", "trip")["folders"] == ["day 1"]
    assert listing(roots, "photos", "near/day 1")["pictures"] == 1
    assert inside(roots, "photos", "trip/day 1") == roots["photos"] / "trip" / "day 1"


@pytest.mark.parametrize(
    "path", ["..", "trip/..", "trip/../..", "/etc", "../private", "out", ".hidden", "a.jpg", "trip\0", "trip\\..", "~"]
)
def test_nothing_else_can_be_chosen(roots: dict[str, Path], path: str):
    for question in (inside, listing):
        with pytest.raises(DataError, match="not there") as told:
            question(roots, "photos", path)
        assert str(roots["photos"]) not in str(told.value)


def test_only_declared_names_are_roots(roots: dict[str, Path]):
    for name in ("", "/", "..", "other"):
        with pytest.raises(DataError, match="not there"):
            inside(roots, name, "")


def test_a_folder_with_a_link_out_anywhere_below_is_not_read(roots: dict[str, Path]):
    photos, trip = roots["photos"], roots["photos"] / "trip"
    with pytest.raises(DataError, match="'out'"):
        refuse_links_out(photos, photos)
    refuse_links_out(trip, photos)
    (trip / "day 1" / "around").symlink_to(photos / "trip")  # a ring ends, and stays inside
    refuse_links_out(trip, photos)
    (trip / "day 1" / "c.png").symlink_to(photos.parent / "private" / "secret.png")
    with pytest.raises(DataError, match="leads out"):
        refuse_links_out(trip, photos)


def test_tables_of_a_root_can_be_chosen_and_links_out_cannot(roots: dict[str, Path]):
    photos = roots["photos"]
    for name in ("trip/b.parquet", "trip/A.PARQUET", "trip/.hidden.parquet"):
        (photos / name).touch()
    (photos / "trip" / "folder.parquet").mkdir()
    (photos / "near.parquet").symlink_to(photos / "trip" / "b.parquet")
    (photos / "out.parquet").symlink_to(photos.parent / "private" / "secret.png")
    assert listing(roots, "photos", "trip")["tables"] == ["A.PARQUET", "b.parquet"]
    assert listing(roots, "photos", "")["tables"] == ["near.parquet"]
    assert table_inside(roots, "photos", "trip/b.parquet") == photos / "trip" / "b.parquet"
    hidden = (
        "out.parquet",
        "trip/.hidden.parquet",
        "../b.parquet",
        "trip/../near.parquet",
        "out/x.parquet",
        "/etc/a.parquet",
    )
    for path in (*hidden, "trip/folder.parquet", "trip/notes.txt", "no.parquet", "", "\0.parquet"):
        with pytest.raises(DataError, match="not there"):
            table_inside(roots, "photos", path)
