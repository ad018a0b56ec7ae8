"""What the server remembers: bounded, and each visitor's own."""

from __future__ import annotations

import pytest
from browser.pictures import photo, turned, upload

from memssl_core.errors import ImageError
from ui.examples import examples
from ui.store import Pictures, Store


def test_the_least_recently_used_goes_first():
    store: Store[bytes] = Store(10, len)
    store.put("a", b"1234")
    store.put("b", b"1234")
    assert store.get("a") == b"1234"  # now b is the oldest
    store.put("c", b"1234")
    assert [store.get(key) for key in "abc"] == [b"1234", None, b"1234"]
    store.drop(["a", "never there"])
    assert store.get("a") is None


def test_a_picture_is_decoded_once_and_told_truly():
    picture = Pictures().add(turned(photo(40, 30))["buffer"], "holiday.jpg")
    told = picture.facts()
    assert (told["width"], told["height"], told["format"]) == (30, 40, "JPEG")
    assert "EXIF" in told["note"] and len(picture.handle) >= 20


def test_a_picture_belongs_to_its_visit():
    pictures = Pictures()
    mine = pictures.add(upload(photo(), "a.png", "PNG")["buffer"], "a.png")
    assert pictures.of_visit(mine.handle, (mine.handle,)) is mine
    with pytest.raises(ImageError, match="add it again"):
        pictures.of_visit(mine.handle, ())
    pictures.drop((mine.handle,))
    with pytest.raises(ImageError, match="add it again"):
        pictures.of_visit(mine.handle, (mine.handle,))


def test_examples_are_open_to_all_and_every_one_can_be_read():
    pictures = Pictures()
    assert {"astronaut", "drawn-1"} <= examples().keys()
    assert next(iter(examples())) == "astronaut"
    for handle in examples():
        picture = pictures.of_visit(handle, ())
        assert min(picture.width, picture.height) >= 200
        assert pictures.get(handle) is picture


def test_pictures_of_other_visits_go_when_there_are_too_many():
    pictures = Pictures(max_bytes=3 * 100 * 100 * 3)
    first, *_, last = [pictures.add(upload(photo(100, 100, seed), "a.png", "PNG")["buffer"], "a") for seed in range(3)]
    assert pictures.get(first.handle) is None and pictures.get(last.handle) is last


def test_of_a_large_picture_a_smaller_copy_is_kept_for_the_page():
    picture = Pictures().add(upload(photo(4100, 300), "wide.jpg", "JPEG")["buffer"], "wide.jpg")
    assert (picture.width, picture.height) == (4100, 300) and picture.shown.size == (2048, 150)
