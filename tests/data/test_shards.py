from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import re
import subprocess
import tarfile
from itertools import chain, groupby
from pathlib import Path

import numpy as np
import pytest
from data.painting import encoded, number_of
from hypothesis import given
from hypothesis import strategies as st

from memssl_core.data import shards
from memssl_core.data.datasets import Images, open_images
from memssl_core.data.images import MAX_BYTES
from memssl_core.errors import DataError, ImageError


def packed(*members: tuple[str, bytes | int], **how) -> bytes:
    """A tar file: name and content, or name and type."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **how) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
            else:
                info.type, info.linkname = bytes([content]), "/etc/passwd"
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return file.getvalue()


def sample(name: object, number: int, **told: str) -> list[tuple[str, bytes | int]]:
    """A picture and the files that go with it."""
    return [(f"{name}.png", encoded(number)), *((f"{name}.{suffix}", text.encode()) for suffix, text in told.items())]


def shard(path: Path, *members: tuple[str, bytes | int]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed(*members))
    return f"wds:{path}"


def numbers(images: Images) -> list[int]:
    return [number_of(lambda i=i: images.read(i)) for i in range(len(images))]


def refusal(spec: str) -> str:
    with pytest.raises(DataError) as caught:
        open_images(spec)
    text = str(caught.value)
    assert text.endswith(".") and text.isprintable() and "Error" not in text
    return text


def test_ids_follow_the_sorted_shards_and_the_order_inside(tmp_path: Path):
    shard(tmp_path / "b.tar", ("z.png", encoded(2)), ("z.cls", b"7"), ("a/x.PNG", encoded(3)))
    shard(
        tmp_path / "a.tar", ("9.cls", b"3"), ("9.png", encoded(0)), ("notes.txt", b"no picture"), ("1.png", encoded(1))
    )
    images = open_images(f"wds:{tmp_path}")
    assert images.uris == ("a.tar/9.png", "a.tar/1.png", "b.tar/z.png", "b.tar/a/x.PNG")
    assert numbers(images) == [0, 1, 2, 3] and images.notes == ()
    assert images.class_names == ("3", "7")
    assert images.labels is not None and images.labels.tolist() == [0, -1, 1, -1]
    copy = pickle.loads(pickle.dumps(images))
    assert numbers(copy) == [0, 1, 2, 3] and copy.uris == images.uris


@pytest.mark.parametrize(
    "pattern",
    ["s-{08..11}.tar", "s-{08,09,10,11}.tar", "{s,s}-{11..08}.ta{r,r}", "s-{0[89],1[01]}.tar"],
)
def test_patterns_name_what_a_shell_names(tmp_path: Path, pattern: str):
    for number in range(8, 13):
        shard(tmp_path / f"s-{number:02}.tar", ("a.png", encoded(number)))
    listed = subprocess.run(["bash", "-c", f"echo {pattern}"], cwd=tmp_path, capture_output=True, text=True).stdout
    images = open_images(f"wds:{tmp_path}/{pattern}")
    assert [uri.split("/")[0] for uri in images.uris] == sorted(set(listed.split()))
    assert numbers(images) == [8, 9, 10, 11]


def test_shards_of_several_folders_are_told_apart_by_them(tmp_path: Path):
    shard(tmp_path / "x/a.tar", ("0.png", encoded(0)))
    shard(tmp_path / "y/a.tar", ("0.png", encoded(1)))
    assert open_images(f"wds:{tmp_path}/{{y,x}}/*.tar").uris == ("x/a.tar/0.png", "y/a.tar/0.png")


def test_a_name_with_a_bracket_is_a_name(tmp_path: Path):
    assert numbers(open_images(shard(tmp_path / "odd[1]{2}.tar", ("a.png", encoded(4))))) == [4]


names = st.builds(
    lambda folder, stem, suffix: f"{folder}{stem}.{suffix}",
    st.sampled_from(["", "d/", "d.e/", "./"]),
    st.sampled_from(["a", "b", "a b"]),
    st.sampled_from(["png", "PNG", "cls", "mask.png", "1.jpg", "json", "tar.gz"]),
)


@given(st.lists(names, max_size=12))
def test_samples_are_grouped_as_webdataset_does(given_names: list[str]):
    def key(name: str) -> str:
        return re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", name)[1]  # type: ignore[index]  webdataset's base_plus_ext

    expected = [list(group) for _, group in groupby(given_names, key)]
    grouped = shards._samples([shards.Member(name, offset, 0) for offset, name in enumerate(given_names)])
    starts = np.cumsum([0, *map(len, expected)])
    assert [sample[next(iter(sample))].offset for sample in grouped] == list(starts[:-1])
    for sample, group in zip(grouped, expected, strict=True):
        assert set(sample) == {name.rpartition("/")[2].partition(".")[2].lower() for name in group}


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ([{"cls": "10"}, {"cls": "2"}, {"cls": "-1"}, {}], ["10", "2", None, None]),
        ([{"cls": "1", "txt": "a pea"}, {"cls": "0", "txt": "an oak"}], ["a pea", "an oak"]),
        ([{"cls": "1", "txt": "one caption"}, {"cls": "1", "txt": "another"}], ["1", "1"]),
        ([{"txt": "a caption"}, {"txt": "another"}], [None, None]),
        ([{"cls": "pea"}, {"cls": "oak\x1b"}, {"cls": "two\nlines"}], ["pea", "oak\\x1b", None]),
        ([{"json": {"label": 3}}, {"json": {"label": "3", "class_name": "pea"}}], ["pea", "pea"]),
        ([{"json": {"class_name": "7"}}, {"json": {"label": "oak"}}, {"json": {"label": None}}], ["7", "oak", None]),
        ([{"json": [1]}, {"json": {"label": [1]}}, {"json": {"label": 1.5}}], [None, None, None]),
        ([{"cls": "pea"}, {"cls": "9" * 5000}, {"cls": ""}, {"cls": "5"}], [None, None, None, "5"]),  # of two kinds
    ],
)
def test_classes(tmp_path: Path, files: list[dict], named: list[str | None]):
    members = []
    for number, told in enumerate(files):
        texts = {suffix: text if isinstance(text, str) else json.dumps(text) for suffix, text in told.items()}
        members += sample(number, number, **texts)
    images = open_images(shard(tmp_path / "a.tar", *members))
    assert [images.class_name(i) for i in range(len(images))] == named


def test_classes_with_numbers_stand_in_their_order(tmp_path: Path):
    told = [(10, "ant"), (2, "pea"), (10, "ant"), (3, "crane"), (4, "crane")]
    members = [sample(i, i, cls=str(number), txt=name) for i, (number, name) in enumerate(told)]
    images = open_images(shard(tmp_path / "a.tar", *chain(*members)))
    assert images.class_names == ("pea", "crane", "crane", "ant")  # two classes may share a name
    assert images.labels is not None and images.labels.tolist() == [3, 0, 3, 1, 2]


def test_names_are_only_labels_and_links_are_passed_over(tmp_path: Path):
    inside = tmp_path / "in"
    hostile = ["/etc/a.png", "../../up.png", "\x1b[31m.png", "ok.png"]
    members: list[tuple[str, bytes | int]] = [(name, encoded(i)) for i, name in enumerate(hostile)]
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
    links: list[tuple[str, bytes | int]] = [(f"link{kind[0]}.png", kind[0]) for kind in kinds]
    images = open_images(shard(inside / "a.tar", *links, *members, ("folder.png", tarfile.DIRTYPE[0])))
    assert images.uris == ("a.tar//etc/a.png", "a.tar/../../up.png", "a.tar/\\x1b[31m.png", "a.tar/ok.png")
    assert numbers(images) == [0, 1, 2, 3]
    assert images.notes == ("a.tar: links and devices are passed over (4).",)
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "a.tar"]


def test_a_file_of_absurd_size_is_named_when_read(tmp_path: Path):
    path = tmp_path / "a.tar"
    huge = tarfile.TarInfo("0.png")
    huge.size = MAX_BYTES + 1
    with path.open("wb") as file:
        file.write(huge.tobuf())
        file.seek(-huge.size % 512 + huge.size, os.SEEK_CUR)  # a hole: no such bytes are written
        file.write(packed(("1.png", encoded(1))))
    images = open_images(f"wds:{path}")
    with pytest.raises(ImageError, match="^a.tar/0.png: This file is larger than 50 MB"):
        images.read(0)
    assert number_of(lambda: images.read(1)) == 1


def test_a_shard_cut_anywhere_keeps_what_came_before(tmp_path: Path):
    content = packed(*chain(*(sample(i, i, cls="5") for i in range(3))))
    end = len(content.rstrip(b"\0")) // 512 * 512 + 512  # of the last member
    path = tmp_path / "a.tar"
    kept = []
    for cut in [*range(0, end + 1024, 128), *range(511, end, 512)]:
        path.write_bytes(content[:cut])
        try:
            images = open_images(f"wds:{path}")
        except DataError as problem:
            assert "a.tar ends early or is damaged (files before that: 0). Copy or download it again." in str(problem)
            assert cut < 1024
            continue
        assert numbers(images) == [*range(len(images))]
        assert bool(images.notes) == (cut < end + 512)  # the block that marks the end
        assert all("ends early" in note for note in images.notes)
        kept.append((cut, len(images)))
    assert {count for _, count in kept} == {1, 2, 3}
    assert [count for _, count in sorted(kept)] == sorted(count for _, count in kept)


def test_the_good_shards_are_read_where_one_is_damaged(tmp_path: Path):
    shard(tmp_path / "a.tar", ("0.png", encoded(0)))
    (tmp_path / "b.tar").write_bytes(b"junk" * 1000)
    shard(tmp_path / "c.tar", ("0.png", encoded(1)))
    images = open_images(f"wds:{tmp_path}/{{a,b,c}}.tar")
    assert numbers(images) == [0, 1]
    assert images.notes == ("b.tar ends early or is damaged (files before that: 0). Copy or download it again.",)


headers = st.lists(st.tuples(st.integers(0, 2559), st.binary(min_size=1, max_size=12)), max_size=4)


@given(headers, st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]), st.booleans())
def test_no_header_makes_trouble(tmp_path_factory, changes: list[tuple[int, bytes]], form: int, is_signed: bool):
    content = bytearray(packed(("é" * 120 + ".png", encoded(0)), ("b.png", encoded(1)), format=form))
    for at, change in changes:
        content[at : at + len(change)] = change
    if is_signed:  # so that more than the checksum is tested
        for at in range(0, len(content) - 511, 512):
            if content[at + 257 : at + 262] == b"ustar":
                block = bytes(content[at : at + 148]) + b" " * 8 + bytes(content[at + 156 : at + 512])
                content[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    path = tmp_path_factory.getbasetemp() / "hostile.tar"
    path.write_bytes(content)
    try:
        images = open_images(f"wds:{path}")
    except DataError as problem:
        assert str(problem).isprintable()
        return
    for image_id in range(len(images)):
        try:
            images.read(image_id)
        except ImageError as problem:
            assert str(problem).isprintable()


@pytest.mark.parametrize("size", [b"\xff" * 12, b"\x80" + b"\xff" * 11, b"77777777777\0"])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.GNUTYPE_SPARSE])
def test_a_size_below_zero_or_beyond_the_file_ends_the_shard(tmp_path: Path, size: bytes, kind: bytes):
    header = bytearray(tarfile.TarInfo("1.png").tobuf(tarfile.GNU_FORMAT))
    header[124:136], header[156:157], header[148:156] = size, kind, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "a.tar"
    path.write_bytes(packed(("0.png", encoded(0)))[:1024] + header + bytes(4096))
    images = open_images(f"wds:{path}")
    assert numbers(images) == [0] and images.notes


def test_a_name_of_megabytes_is_not_read(tmp_path: Path):
    content = packed(("0.png", encoded(0)), ("n" * 3_000_000 + ".png", encoded(1)), format=tarfile.PAX_FORMAT)
    (tmp_path / "a.tar").write_bytes(content)
    images = open_images(f"wds:{tmp_path}/a.tar")
    assert numbers(images) == [0] and images.notes


def test_a_shard_that_goes_away_is_told_at_each_picture(tmp_path: Path):
    images = open_images(shard(tmp_path / "a.tar", ("0.png", encoded(0)), ("1.png", b"no picture")))
    with pytest.raises(ImageError, match="^a.tar/1.png: This is not a picture"):
        images.read(1)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(ImageError, match="^a.tar/0.png: Its shard cannot be opened") as caught:
        images.read(0)
    assert str(tmp_path) not in str(caught.value)


def test_shards_that_cannot_be_used(tmp_path: Path):
    assert "no shards in this folder" in refusal(f"wds:{tmp_path}")
    shard(tmp_path / "a-0.tar", ("a.txt", b"no picture"))
    assert "no pictures in these shards. They need files ending in" in refusal(f"wds:{tmp_path}")
    assert "there is no shard" in (text := refusal(f"wds:{tmp_path}/a-{{0..1}}.tar")) and "a-1.tar" in text
    for pattern in ("", "gone", "\0", "a\0*", f"{tmp_path}/*.zip", "{,}", "{1..2", "~/\x1b*"):
        assert "there is no shard" in refusal(f"wds:{pattern}")
    assert "more than 100000 shards" in refusal("wds:{0..999999}.tar")
    assert "more than 100000 shards" in refusal("wds:" + "{0..99999}" * 30)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar"])
def test_compressed_shards_are_refused(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(gzip.compress(packed(("0.png", encoded(0)))))
    assert f"{name} is compressed" in refusal(f"wds:{tmp_path}") and "plain .tar" in refusal(f"wds:{tmp_path / name}")
