"""Galleries of pictures, names and files that are hostile or damaged."""

from __future__ import annotations

import errno
import io
import json
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from data.painting import encoded, paint
from PIL import Image

from analysis import collect, gallery, update
from analysis.gallery import delete_gallery, galleries, open_gallery
from analysis.update import need, update_gallery
from memssl_core.errors import DataError, ImageError, ModelError
from tests.analysis.collecting import Fake, contents, encoder, expected, made

ROOT = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.usefixtures("home")


# Hostile pictures


def hostile(photos: Path) -> dict[str, str]:
    """Add files that cannot be read; names and what is said of each."""
    sink = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)).save(sink, "JPEG")
    (photos / "cut.jpg").write_bytes(sink.getvalue()[: len(sink.getvalue()) // 100])
    (photos / "half.jpg").write_bytes(sink.getvalue()[: len(sink.getvalue()) // 2])
    (photos / "text.png").write_text("no picture")
    (photos / "empty.png").touch()
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (photos / "bomb.png").write_bytes(encoded(0)[:8] + chunk + encoded(0)[33:])
    words = {"cut.jpg": "can", "half.jpg": "ends early", "text.png": "not a picture", "empty.png": "not a picture"}
    return {**words, "bomb.png": "too large"}


def test_what_cannot_be_read_is_named_counted_and_passed_over(photos):
    bad, events = hostile(photos), []
    opened = made(photos, emit=lambda event, *, step, **told: events.append((event, told)))
    assert contents(opened) == expected_without(photos, bad)
    told = dict(opened.skipped())
    assert told.keys() == bad.keys() and all(words in told[name] for name, words in bad.items())
    assert opened.facts["skipped"] == 5
    sentences = [facts["message"] for event, facts in events if event == "skipped_image"]
    assert len(sentences) == 5 and all(any(name in one for one in sentences) for name in bad)


def expected_without(photos: Path, bad) -> dict[str, list[float]]:
    aside = {name: (photos / name).rename(photos.parent / f"aside-{name}") for name in bad}
    found = expected(photos)
    for name, path in aside.items():
        path.rename(photos / name)
    return found


def test_what_could_not_be_read_is_not_tried_again_until_it_changes(photos):
    (photos / "text.png").write_text("no picture")
    made(photos)
    (photos / "text.png").rename(photos / "words.png")
    fake = Fake()
    opened = made(photos, fake)
    assert fake.names == [] and [path for path, _ in opened.skipped()] == ["words.png"]
    (photos / "words.png").write_bytes(encoded(50))
    assert made(photos, fake).skipped() == [] and fake.names == ["words.png"]


def test_a_model_that_gives_nothing(photos):
    class Broken(Fake):
        def batch(self, good, skipped):
            found = super().batch(good, skipped)
            found.embeddings[:1] = float("nan")
            return found

    opened = made(photos, Broken())
    assert len(opened) == 2 and {reason for _, reason in opened.skipped()} == {collect.NOTHING}


def test_nothing_that_can_be_read(tmp_path):
    paint(tmp_path / "photos", "a.png")
    (tmp_path / "photos/a.png").write_text("x")
    with pytest.raises(DataError, match=r"None of these pictures can be read. a.png: This is not a picture"):
        made(tmp_path / "photos")


def test_a_disk_that_went_away_does_not_empty_the_gallery(photos):
    made(photos)
    shutil.rmtree(photos / "cat"), shutil.rmtree(photos / "dog")
    with pytest.raises(DataError, match="no pictures in this folder"):
        update_gallery("mine", None, encoder())
    photos.rmdir()
    with pytest.raises(DataError):
        update_gallery("mine", None, encoder())
    opened = open_gallery("mine")
    assert len(opened) == 5
    with pytest.raises(ImageError, match="not there any more"):
        opened.original(0)
    assert opened.picture(0).size == (10, 9)


def test_an_original_that_is_gone_or_changed_is_said(photos):
    shutil.copy(photos / "cat/0.png", photos / "cat/copy.png")
    opened = made(photos)
    row = opened.row_of((photos / "cat/0.png").read_bytes())
    assert row is not None
    (photos / "cat/0.png").unlink()
    assert opened.original(row).size == (10, 9)  # its copy
    (photos / "cat/copy.png").unlink()
    with pytest.raises(ImageError, match="not there any more; update the gallery"):
        opened.original(row)
    (photos / "cat/copy.png").write_bytes(encoded(77))
    with pytest.raises(ImageError, match="changed since; update the gallery"):
        opened.original(row)


def test_a_zip_of_the_same_pictures_embeds_nothing(photos, tmp_path):
    made(photos)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        for path in sorted(photos.rglob("*.png")):
            file.write(path, path.relative_to(photos))
        file.writestr("../out.png", encoded(60))
    fake = Fake()
    opened = made(tmp_path / "photos.zip", fake)
    assert fake.names == [] and contents(opened) == expected(photos) and opened.class_names == ["cat", "dog"]
    assert [path for path, _ in opened.skipped()] == ["../out.png"]
    assert opened.original(0).size == (10, 9)
    assert made(tmp_path / "photos.zip", fake).facts["state"] == 3 and fake.names == []


def test_drawn_pictures():
    fake = Fake()
    opened = update_gallery("drawn", "drawn:0:4:16", encoder(fake))
    assert len(opened) == 4 and opened.class_name(0) and opened.original(1).size == (16, 16)
    assert len(update_gallery("drawn", "drawn:0:6:16", encoder(fake))) == 6 and len(fake.names) == 6


# Names, files, other processes


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "a\\b", "é", "x" * 81, "a\n", "-x", "a\0"])
def test_hostile_names(name, photos):
    for act in (open_gallery, delete_gallery, lambda n: update_gallery(n, str(photos), encoder())):
        with pytest.raises(ModelError, match="cannot name a gallery"):
            act(name)


def test_deleting(photos, home, tmp_path):
    made(photos)
    (home / "link").symlink_to(tmp_path / "photos")
    for other in ("link", "nothing"):
        with pytest.raises(ModelError, match="no gallery"):
            delete_gallery(other)
    delete_gallery("mine")
    assert galleries() == [] and (photos / "cat/0.png").exists()
    with pytest.raises(ModelError, match="There is no gallery mine"):
        open_gallery("mine")


def test_two_at_once(photos):
    made(photos)
    with gallery.claimed(gallery.gallery_folder("mine")):
        for act in (lambda: made(photos), lambda: delete_gallery("mine")):
            with pytest.raises(DataError, match="being updated just now"):
                act()


def test_need_and_a_disk_that_is_too_small(photos, monkeypatch, home):
    told = need("mine", str(photos), encoder())
    assert (told.pictures, told.new, told.moved, told.gone, told.problems) == (5, 5, 0, 0, ())
    assert told.seconds > 0 and told.disk_bytes > 0 and not home.exists()
    monkeypatch.setattr(update, "_disk_free", lambda root: 1000)
    assert "of disk and 0.0 GB are free" in need("mine", str(photos), encoder()).problems[0]
    with pytest.raises(DataError, match="make room"):
        made(photos)


def test_a_disk_that_fills_up(photos):
    class Full(Fake):
        def batch(self, good, skipped):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DataError, match="The disk is full. What is embedded of gallery mine stays"):
        made(photos, Full())


def test_damaged_files(photos, home):
    first = made(photos)
    part = next(first.folder.parent.glob("parts/part-*"))
    part.write_bytes(part.read_bytes()[:-100])
    assert first.thumbnail(0) == b""
    fake = Fake()
    assert contents(made(photos, fake)) == expected(photos) and len(fake.names) == 5
    opened = open_gallery("mine")
    (opened.folder / "rows.parquet").write_bytes(b"x")
    with pytest.raises(ModelError, match="Gallery mine is damaged"):
        open_gallery("mine")
    assert len(update_gallery("mine", str(photos), encoder(), again=True)) == 5
    facts = json.loads((home / "mine/gallery.json").read_bytes())
    (home / "mine/gallery.json").write_text(json.dumps({**facts, "format": 99}))
    with pytest.raises(ModelError, match="another version"):
        open_gallery("mine")
    assert [told["finished"] for told in galleries()] == [False] and "another version" in galleries()[0]["problem"]
    (home / "mine/gallery.json").write_text("[]")
    with pytest.raises(ModelError, match="not finished"):
        open_gallery("mine")
    delete_gallery("mine")


@pytest.mark.parametrize("name", ["vectors.npy", "rows.parquet", "items.parquet", "skipped.parquet"])
@pytest.mark.parametrize("data", [b"", b"PK\3\4", b"\x93NUMPY\1\0", None])
def test_any_damaged_file_is_a_sentence(name, data, photos):
    path = made(photos).folder / name
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    acts = [lambda: open_gallery("mine").skipped(), lambda: made(photos), lambda: need("mine", str(photos), encoder())]
    for act in acts:
        with pytest.raises(ModelError, match="Gallery mine is damaged; delete it"):
            act()
    assert len(made(photos, again=True)) == 5


def test_a_damaged_index_is_made_anew(photos, monkeypatch):
    monkeypatch.setattr(gallery, "EXACT_UP_TO", 3)
    first = made(photos)
    assert first.index is not None
    (first.folder / "index.faiss").write_bytes(b"damaged")
    old = (first.folder / "index.faiss").stat().st_ino
    assert open_gallery("mine").index is None
    opened = made(photos)
    assert opened.index is not None and (opened.folder / "index.faiss").stat().st_ino != old
    assert (made(photos).folder / "index.faiss").stat().st_nlink == 1  # linked, then the old one removed


def test_vectors_of_another_shape_are_damaged(photos):
    path = made(photos).folder / "vectors.npy"
    for wrong in (np.zeros(5, np.float16), np.zeros((5, 6, 1), np.float16), np.array(None)):
        np.save(path, wrong, allow_pickle=True)
        with pytest.raises(ModelError, match="Gallery mine is damaged"):
            open_gallery("mine")


def test_a_new_gallery_needs_pictures():
    with pytest.raises(DataError, match="say of which pictures"):
        update_gallery("mine", None, encoder())
