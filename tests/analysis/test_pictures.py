"""Sources of galleries: folders and archives as hostile as they come."""

from __future__ import annotations

import io
import os
import struct
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.painting import encoded, number_of, paint

from analysis import pictures, zips
from analysis.pictures import Changed, content_of, open_pictures
from memssl_core.errors import DataError, ImageError


def paths(source) -> list[str]:
    return source.listing().table["path"].to_pylist()


def skipped(source) -> dict[str, str]:
    return dict(source.listing().skipped)


# Folders


def test_a_folder_lists_its_pictures_with_classes_and_states(tmp_path):
    paint(tmp_path, "cat/a.png", "dog/b.PNG", "dog/c.png", ".hidden/d.png", "dog/.e.png", "dog/words.txt")
    table = open_pictures(str(tmp_path)).listing().table
    told = {row["path"]: row for row in table.to_pylist()}
    assert {path: row["class_name"] for path, row in told.items()} == {
        "cat/a.png": "cat",
        "dog/b.PNG": "dog",
        "dog/c.png": "dog",
    }
    state = (tmp_path / "dog/c.png").stat()
    assert (told["dog/c.png"]["size"], told["dog/c.png"]["stamp"]) == (state.st_size, state.st_mtime_ns)
    assert table["at"].to_pylist() == [0, 1, 2]


def test_a_picture_is_read_by_place_and_by_path(tmp_path):
    paint(tmp_path, "a.png", "b.png")
    source = open_pictures(str(tmp_path))
    at = paths(source).index("b.png")
    content = source.content(at)
    assert content == content_of((tmp_path / "b.png").read_bytes())
    assert number_of(lambda: source.read(at, content)) == number_of(lambda: source.named("b.png", content)) == 1
    (tmp_path / "b.png").write_bytes(encoded(2))
    with pytest.raises(Changed, match="changed while it was read"):
        source.read(at, content)


def test_no_link_is_followed(tmp_path):
    paint(tmp_path, "inside/a.png", "outside/secret.png", "inside/deep/b.png")
    inside = tmp_path / "inside"
    (inside / "out").symlink_to(tmp_path / "outside")
    (inside / "out.png").symlink_to(tmp_path / "outside/secret.png")
    (inside / "nowhere.png").symlink_to(tmp_path / "gone.png")
    (inside / "again.png").symlink_to(inside / "a.png")
    (inside / "round").symlink_to(inside)
    source = open_pictures(str(inside))
    assert paths(source) == ["a.png", "deep/b.png"]
    assert {*skipped(source)} == {"out", "out.png", "nowhere.png"}
    (inside / "deep").rename(tmp_path / "moved")
    (inside / "deep").symlink_to(tmp_path / "outside")  # after it was listed
    (tmp_path / "outside/secret.png").rename(tmp_path / "outside/b.png")
    with pytest.raises(ImageError, match="leads out of the folder"):
        source.content(1)


def test_hostile_names_and_things_that_are_no_files(tmp_path):
    long, odd = "x" * 250 + ".png", "a\x1b[31m\nb<img src=x>.png"
    paint(tmp_path, long, odd, "folder.png/c.png")
    os.mkfifo(tmp_path / "pipe.png")
    with open(os.path.join(os.fsencode(tmp_path), b"\xff\xfe.png"), "wb") as file:
        file.write(encoded(7))
    source = open_pictures(str(tmp_path))
    assert sorted(paths(source)) == sorted([long, odd, "folder.png/c.png"])
    assert skipped(source) == {"pipe.png": pictures.NO_FILE, r"\udcff\udcfe.png": pictures.NO_TEXT}
    assert number_of(lambda: source.named(odd, source.content(paths(source).index(odd)))) == 1


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    paint(tmp_path, "a.png", "closed/b.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    source = open_pictures(str(tmp_path))
    assert paths(source) == ["a.png"] and skipped(source) == {"closed": pictures.UNLISTED}


@pytest.mark.parametrize("spec", ["", "nowhere", "\0", "a.zip", "wds:../../etc", "drawn:1:0"])
def test_what_is_no_source(spec):
    with pytest.raises(DataError) as caught:
        open_pictures(spec).listing()
    assert "\n" not in str(caught.value) and "Error" not in str(caught.value)


def test_an_empty_folder_and_two_folders(tmp_path):
    with pytest.raises(DataError, match="no pictures in this folder"):
        open_pictures(str(tmp_path)).listing()
    paint(tmp_path, "a/1.png", "b/2.png")
    with pytest.raises(DataError, match="one folder or archive"):
        open_pictures(f"{tmp_path}/a+{tmp_path}/b")


# Tables and drawn pictures


def test_drawn_pictures_are_known_by_name(tmp_path):
    few, many, larger = (open_pictures(f"drawn:3:{count}") for count in ("4", "6", "4:64"))
    few.listing(), many.listing(), larger.listing()
    assert [few.content(at) for at in range(4)] == [many.content(at) for at in range(4)]
    assert few.content(0) != larger.content(0)
    assert few.named("drawn:3:2", "").size == (96, 96)


def test_rows_of_a_table_with_one_name_are_told_apart(tmp_path):
    images = [{"bytes": encoded(i), "path": "same.png"} for i in range(2)]
    pq.write_table(pa.table({"image": images}), tmp_path / "t.parquet")
    source = open_pictures(str(tmp_path / "t.parquet"))
    assert paths(source) == ["same.png (0)", "same.png (1)"]
    assert number_of(lambda: source.named("same.png (1)", "")) == 1


# Zips


def archive(path, **members: bytes):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def entry(name: str, *, mode: int = 0, flags: int = 0, kind: int = zipfile.ZIP_STORED) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr, info.compress_type = mode << 16, kind
    info.flag_bits |= flags
    return info


def test_an_archive_lists_and_reads_its_pictures(tmp_path):
    source = open_pictures(
        str(archive(tmp_path / "a.ZIP", **{"all/cat/1.png": encoded(1), "all/dog/2.jpg": encoded(2), "all/x.txt": b""}))
    )
    table = source.listing().table
    assert table["path"].to_pylist() == ["all/cat/1.png", "all/dog/2.jpg"]
    assert table["class_name"].to_pylist() == ["cat", "dog"]
    assert source.content(1) == content_of(encoded(2))
    assert number_of(lambda: source.read(1, source.content(1))) == 2
    assert number_of(lambda: source.named("all/cat/1.png", source.content(0))) == 1


HOSTILE = {
    "../out.png": zips.LEADS_OUT,
    "/etc/out.png": zips.LEADS_OUT,
    "a/../../out.png": zips.LEADS_OUT,
    "..\\out.png": zips.LEADS_OUT,
    "C:\\out.png": zips.LEADS_OUT,
    "a//b.png": zips.LEADS_OUT,
    "n" * 1200 + ".png": zips.LONG_NAME,
    "inner.zip": zips.NESTED,
}


def test_hostile_members_are_named_and_the_others_read(tmp_path):
    path = tmp_path / "hostile.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name in HOSTILE:
            file.writestr(entry(name), encoded(3))
        file.writestr(entry("link.png", mode=0o120777), b"/etc/passwd")
        file.writestr(entry("device.png", mode=0o020666), b"")
        file.writestr(entry("bzip2.png", kind=zipfile.ZIP_BZIP2), encoded(4))
        file.writestr(entry("bomb.bmp", kind=zipfile.ZIP_DEFLATED), b"BM" + bytes(3_000_000))
        file.writestr(entry("good.png"), encoded(5))
        file.writestr(entry("crc.png"), encoded(6))
        file.writestr(entry("locked.png"), encoded(7))
        file.writestr("__MACOSX/._good.png", b"x")
        with pytest.warns(UserWarning):
            file.writestr(entry("good.png"), encoded(9))
        file.writestr("padding.txt", os.urandom(60_000))  # so that the whole stays below the ratio
    data = bytearray(path.read_bytes())
    at = data.rindex(encoded(6))
    data[at + 20] ^= 0xFF
    directory = data.rindex(b"locked.png") - 46
    data[directory + 8] |= 1  # encrypted
    path.write_bytes(data)
    source = open_pictures(str(path))
    told = skipped(source)
    cut = {name.replace("\\", "/")[:1000]: reason for name, reason in HOSTILE.items()}
    assert told == cut | {
        "link.png": zips.LINK,
        "device.png": zips.LINK,
        "bzip2.png": zips.METHOD,
        "bomb.bmp": zips.BOMB,
        "good.png": zips.TWICE,
        "locked.png": zips.ENCRYPTED,
    }
    good, damaged = (paths(source).index(name) for name in ("good.png", "crc.png"))
    assert number_of(lambda: source.read(good, source.content(good))) == 5
    with pytest.raises(ImageError, match="damaged in the archive"):
        source.content(damaged)


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("size", [zips.PIECE - 1, zips.PIECE, zips.MAX_DIRECTORY_BYTES + zips.PIECE])
def test_large_members_are_read_whole(tmp_path, kind, size):
    data = np.random.default_rng(0).bytes(size)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", kind, compresslevel=0) as file:
        file.writestr("a.png", data)
    opened = zips.open_zip(tmp_path / "a.zip")
    assert zips.read_member(opened, opened.infolist()[0]) == data
    opened.fp.close()


def test_a_member_that_lies_about_its_size(tmp_path):
    path = archive(tmp_path / "a.zip", **{"a.png": encoded(1) + bytes(5000)})
    data = bytearray(path.read_bytes())
    directory = data.rindex(b"PK\x01\x02")
    struct.pack_into("<I", data, directory + 24, 100)
    path.write_bytes(data)
    source = open_pictures(str(path))
    assert len(source.listing().table) == 1
    with pytest.raises(ImageError, match="damaged in the archive"):
        source.content(0)


def overlapping() -> bytes:
    """Many directory entries that lead to one member."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("0.png", os.urandom(20_000))
        info = file.infolist()[0]
        for number in range(1, 50):
            other = zipfile.ZipInfo(f"{number}.png")
            for name in ("header_offset", "compress_size", "file_size", "CRC", "compress_type"):
                setattr(other, name, getattr(info, name))
            file.filelist.append(other)
            file.NameToInfo[other.filename] = other
    return sink.getvalue()


def test_whole_archives_that_are_traps_are_refused(tmp_path, monkeypatch):
    trap = tmp_path / "trap.zip"

    def refusal() -> str:
        with pytest.raises(DataError) as caught:
            open_pictures(str(trap))
        return str(caught.value)

    trap.write_bytes(overlapping())
    assert "as only traps do" in refusal()
    with zipfile.ZipFile(trap, "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(30):
            file.writestr(f"{number}.bmp", bytes(900_000))  # each below the size that is looked at
    assert "as only traps do" in refusal()
    archive(trap, **{f"{number}.png": encoded(number) for number in range(8)})
    monkeypatch.setattr(zips, "MAX_MEMBERS", 7)
    assert "holds 8 files; at most 7" in refusal()
    monkeypatch.setattr(zips, "MAX_MEMBERS", 9)
    monkeypatch.setattr(zips, "MAX_TOTAL_BYTES", 100)
    assert "unpacks to" in refusal()
    monkeypatch.setattr(zips, "MAX_DIRECTORY_BYTES", 100)
    assert "not a zip file" in refusal()


@pytest.mark.parametrize("data", [b"", b"PK\x05\x06", b"\x00" * 100, np.random.default_rng(0).bytes(5000)])
def test_what_is_no_archive(tmp_path, data):
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(DataError, match="a.zip is not a zip file that can be read"):
        open_pictures(str(tmp_path / "a.zip"))


@pytest.mark.parametrize("cut", [0.99, 0.5])
def test_an_archive_cut_short(tmp_path, cut):
    path = archive(tmp_path / "a.zip", **{f"{number}.png": os.urandom(500) for number in range(5)})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * cut)])
    with pytest.raises(DataError, match="not a zip file"):
        open_pictures(str(path))
