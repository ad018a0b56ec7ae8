"""Galleries: embedded once, brought up to date, gone on with after a kill. The embedder is a small fake that counts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data.painting import encoded, paint
from PIL import Image

from analysis import gallery, parts, update
from analysis.gallery import galleries, open_gallery
from analysis.update import encoder_of, need, update_gallery
from memssl_core.data.images import decode_image
from memssl_core.errors import ModelError
from tests.analysis.collecting import WIDTH, Fake, contents, encoder, expected, made

ROOT = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.usefixtures("home")


def test_a_gallery_tells_what_it_holds(photos):
    opened = made(photos)
    assert contents(opened) == expected(photos)
    assert len(opened) == 5 and opened.class_names == ["cat", "dog"]
    for row in np.arange(5):
        assert opened.class_name(row) == opened.uri(row).split("/")[0]
        assert opened.size_px(row) == (10, 9) and decode_image(opened.thumbnail(row)).size == (10, 9)
        data = (photos / opened.uri(row)).read_bytes()
        assert opened.row_of(data) == row
        assert np.array_equal(np.asarray(opened.original(row)), np.asarray(decode_image(data)))
    assert opened.row_of(encoded(77)) is None
    assert opened.describe(np.array([2]))[0] == {
        "id": 2,
        "uri": opened.uri(2),
        "copies": 1,
        "class_name": opened.class_name(2),
        "width": 10,
        "height": 9,
    }
    for asked in (opened.thumbnail, opened.paths_of, opened.original, opened.class_name, opened.size_px):
        for row in (-1, 5):
            with pytest.raises(ModelError, match=f"no picture {row} in gallery mine"):
                asked(row)
    facts = opened.facts
    assert (facts["pictures"], facts["rows"], facts["skipped"], facts["width"]) == (5, 5, 0, WIDTH)
    (listed,) = galleries()
    assert listed["name"] == "mine" and listed["finished"] and listed["data"] == "photos"


def test_the_models_own_embeddings(workbench, photos):
    opened = update_gallery("mine", str(photos), encoder_of(workbench.model))
    for row in range(5):
        embedding = workbench.embedding(photos / opened.uri(row))
        np.testing.assert_allclose(opened.vectors[row], embedding / np.linalg.norm(embedding), atol=1e-3)
    opened.require(workbench.model.model_hash, update.asdict(workbench.model.transform))


def test_what_has_not_changed_is_not_read(photos, monkeypatch):
    made(photos)
    monkeypatch.setattr("analysis.pictures.FolderPictures.content", None)
    fake = Fake()
    assert contents(made(photos, fake)) == expected(photos) and fake.names == []


def test_moved_copied_changed_deleted_new(photos):
    before = made(photos)
    (photos / "cat/0.png").rename(photos / "dog/moved.png")
    shutil.copy(photos / "dog/2.png", photos / "cat/copy.png")
    (photos / "dog/3.png").write_bytes(encoded(33))
    (photos / "dog/4.png").unlink()
    paint(photos / "cat", "new.png")  # number 0 again: the content of the moved one
    (photos / "cat/newer.png").write_bytes(encoded(44))
    told = need("mine", None, encoder())
    fake = Fake()
    after = made(photos, fake)
    assert sorted(fake.names) == ["cat/newer.png", "dog/3.png"]
    assert contents(after) == expected(photos)
    row = after.row_of(encoded(2))
    assert after.paths_of(row) == ["cat/copy.png", "dog/2.png"] and after.describe([row])[0]["copies"] == 2
    assert (after.facts["pictures"], len(after)) == (7, 5)
    assert (told.pictures, told.gone, told.skipped) == (7, 2, 0) and told.new + told.moved == 5
    assert len(before) == 5 and contents(before).keys() == {
        f"{n}.png" for n in ("cat/0", "cat/1", "dog/2", "dog/3", "dog/4")
    }
    assert after.row_of(encoded(4)) is None  # deleted


def test_another_folder_with_the_same_names_sizes_and_times(tmp_path):
    for folder, red in (("a", 10), ("b", 200)):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (20, 20), (red, 0, 0)).save(tmp_path / folder / "0.bmp")
        os.utime(tmp_path / folder / "0.bmp", ns=(0, 0))  # as archives unpack that are the same for all
    fake = Fake()
    for folder, red in (("a", 10), ("b", 200)):
        opened = made(tmp_path / folder, fake)
        assert opened.original(int(opened.items["row"][0].as_py())).getpixel((0, 0)) == (red, 0, 0)
    assert fake.names == ["0.bmp"] * 2


def test_what_comes_back_is_not_embedded_again(photos):
    made(photos)
    data = (photos / "cat/0.png").read_bytes()
    (photos / "cat/0.png").unlink()
    opened = made(photos)
    assert opened.live is not None and opened.row_of(data) is None and len(opened) == 4
    fake = Fake()
    (photos / "cat/0.png").write_bytes(data)
    assert contents(made(photos, fake)) == expected(photos) and fake.names == []


def test_added_s_is_when_a_picture_was_first_found(photos, monkeypatch):
    monkeypatch.setattr(gallery.time, "time", lambda: 1.0)
    made(photos)
    monkeypatch.setattr(gallery.time, "time", lambda: 2.0)
    (photos / "dog/3.png").write_bytes(encoded(33))
    items = made(photos).items.to_pylist()
    assert {item["path"]: item["added_s"] for item in items if item["added_s"] != 1} == {"dog/3.png": 2.0}


def test_parts_are_written_anew_when_much_is_garbage(photos, monkeypatch):
    monkeypatch.setattr(parts, "PART", 2)
    made(photos)
    for name in ("cat/0.png", "dog/2.png"):
        (photos / name).unlink()
    opened = made(photos)
    assert opened.vectors.shape == (3, WIDTH) and opened.live is None
    assert contents(opened) == expected(photos)
    for row in range(3):  # thumbnails moved along
        shown = np.asarray(decode_image(opened.thumbnail(row)), int)
        assert abs(shown - np.asarray(decode_image(photos / opened.uri(row)), int)).max() < 30
    assert len([*opened.folder.parent.glob("parts/part-*")]) == 2
    fake = Fake()
    assert contents(made(photos, fake)) == expected(photos) and fake.names == []


# Kills


def many(tmp_path) -> Path:
    paint(tmp_path / "photos", *(f"{number:02d}.png" for number in range(11)))
    return tmp_path / "photos"


@pytest.mark.parametrize("after", [0, 2, 6, 10])
def test_an_embedder_that_fails_costs_only_what_was_in_the_air(tmp_path, monkeypatch, after):
    monkeypatch.setattr(parts, "PART", 4)
    photos, first, second = many(tmp_path), Fake(after), Fake()
    with pytest.raises(RuntimeError, match="killed"):
        made(photos, first)
    with pytest.raises(ModelError, match="not finished"):
        open_gallery("mine")
    assert [told["finished"] for told in galleries()] == [False]
    assert contents(made(photos, second)) == expected(photos)
    assert len(first.names) == after and sorted(first.names + second.names) == sorted(expected(photos))


def test_a_torn_journal_is_read_as_far_as_it_is_whole(tmp_path, home):
    photos = many(tmp_path)
    with pytest.raises(RuntimeError):
        made(photos, Fake(6))
    journal = home / "mine/g000001/parts/journal.arrows"
    journal.write_bytes(journal.read_bytes()[:-40])
    fake = Fake()
    assert contents(made(photos, fake)) == expected(photos) and len(fake.names) == 11 - 4
    assert not journal.exists()


KILLED = """
import os, signal, sys
from analysis import parts
from analysis.update import update_gallery
from tests.analysis.collecting import Fake, encoder
class Killed(Fake):
    def batch(self, good, skipped):
        found = super().batch(good, skipped)
        open(sys.argv[2], "a").write("".join(f"{item.uri}\\n" for item in found.items))
        if len(self.names) > 6: os.kill(os.getpid(), signal.SIGKILL)
        return found
parts.PART = 4
update_gallery("mine", sys.argv[1], encoder(Killed()))
"""


def test_a_killed_process_is_gone_on_with(tmp_path):
    photos, log = many(tmp_path), tmp_path / "log"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    ended = subprocess.run([sys.executable, "-c", KILLED, str(photos), str(log)], env=environment, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    first, second = log.read_text().split(), Fake()
    assert contents(made(photos, second)) == expected(photos)
    assert len(first) == 8 and {*first[:6]}.isdisjoint(second.names)  # the last batch was not handed over yet


@pytest.mark.parametrize("batches", [0, 2])
def test_a_stop_keeps_what_was_embedded_and_the_old_state(tmp_path, batches):
    photos = tmp_path / "photos"
    paint(photos, "old.png")
    old = made(photos)
    many(tmp_path)
    first, second = Fake(), Fake()
    stopped = update_gallery("mine", None, encoder(first), should_stop=lambda: len(first.names) >= 2 * batches)
    assert stopped is None and open_gallery("mine").revision == old.revision
    assert contents(made(photos, second)) == expected(photos)
    assert len(first.names) == 2 * batches and {*first.names}.isdisjoint(second.names)


# Other models


def test_another_model_or_size_asks_to_embed_again(photos):
    made(photos)
    for other in (encoder(model="b"), encoder(crop_px=96)):
        with pytest.raises(ModelError, match=r"embedded by random:a, not by this model.*again \(--again\)"):
            update_gallery("mine", str(photos), other)
        with pytest.raises(ModelError, match="not by this model"):
            need("mine", None, other)
        with pytest.raises(ModelError, match="not by this model"):
            open_gallery("mine").require(other.model_hash, other.transform)
    open_gallery("mine").require("a", encoder().transform)


def test_embedding_again_keeps_the_old_answers_until_it_is_whole(photos, home):
    made(photos)
    first, second = Fake(2), Fake()
    with pytest.raises(RuntimeError):
        update_gallery("mine", str(photos), encoder(first, "b"), again=True)
    assert open_gallery("mine").facts["model_hash"] == "a"
    assert contents(made(photos)) == expected(photos)  # the old model goes on meanwhile
    opened = update_gallery("mine", str(photos), encoder(second, "b"), again=True)
    assert opened.facts["model_hash"] == "b" and contents(opened) == expected(photos)
    assert len(first.names) == 2 and sorted(first.names + second.names) == sorted(expected(photos))
    assert [path.name for path in (home / "mine").glob("g*0*")] == [f"g{opened.facts['generation']:06d}"]
    third = Fake()
    update_gallery("mine", str(photos), encoder(third, "b"), again=True)
    assert len(third.names) == 5


def test_a_first_run_of_another_model_that_never_ended(photos):
    with pytest.raises(RuntimeError):
        made(photos, Fake(2))
    with pytest.raises(ModelError, match="not by this model"):
        update_gallery("mine", str(photos), encoder(model="b"))
    fake = Fake()
    assert len(update_gallery("mine", None, encoder(fake, "b"), again=True)) == 5 and len(fake.names) == 5
