"""Webdataset tar shards: one pass over the headers finds the pictures, each is read by seeking, nothing is unpacked.

Files of one sample stand together and share their name up to the first dot (webdataset's rule): `0001.jpg`, `0001.cls`.
"""

from __future__ import annotations

import glob
import io
import itertools
import json
import math
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from memssl_core.data.datasets import Images, ranked
from memssl_core.data.images import MAX_BYTES, TOO_LARGE_FILE, decode_image, picture_suffixes, printable
from memssl_core.errors import DataError, ImageError

MAX_SHARDS = 100_000
MAX_HEADER_BYTES = 2**20  # of a name or other header field: tarfile would read any size into memory
MAX_TOLD_BYTES = 2**16  # of a .cls, .txt or .json member
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstandard
_TAR = re.compile(r"\.(tar|tgz|tar\.(gz|bz2|xz|zst))$", re.IGNORECASE)
_BRACES = re.compile(r"(\{[0-9]{1,6}\.\.[0-9]{1,6}\}|\{[^{}]*,[^{}]*\})")


class Member(NamedTuple):
    name: str
    offset: int
    size: int


def open_shards(spec: str) -> Images:
    """`wds:PATTERN`: a tar file, a folder (its tar files), or names with braces ({000..009}, {a,b}) and globs (*, ?).

    Order: shards by their paths as text, then as they stand in the shard; a sample counts if it has a picture. Its
    class is the number in `.cls` (else "label" of `.json`), named by "class_name" of `.json` or by a `.txt` if every
    number has one name; without numbers, "class_name" or a word in place of the number. `notes` tells what is left
    out.

    Raises: DataError for shards that are missing or compressed, or when no picture is in them.
    """
    paths = _find(spec)
    above = os.path.commonpath([os.path.dirname(path) for path in paths])
    suffixes = picture_suffixes()
    uris, members, numbers, names, notes = [], [], [], [], []
    for shard, path in enumerate(paths):
        title = printable(os.path.relpath(path, above))
        try:
            with _Headers(io.FileIO(path)) as file:
                found, problem = _members(spec, title, file)
                for sample in _samples(found):
                    if picture := _picture_of(sample, suffixes):
                        uris.append(f"{title}/{printable(picture.name)}")
                        members.append((shard, picture.offset, picture.size))
                        number, name = _told(file, sample)
                        numbers.append(number)
                        names.append(name)
        except OSError:
            problem = f"{title} cannot be opened. Check that it may be read."
        notes += [problem] if problem else []
    if not uris:
        said = notes[0] if notes else f"They need files ending in {', '.join(sorted(suffixes))}."
        raise DataError(f"{printable(spec)}: no pictures in these shards. {said}")
    return Images(
        spec, tuple(uris), *_classes(numbers, names), _Members(tuple(paths), np.array(members, np.int64)), tuple(notes)
    )


@dataclass(frozen=True)
class _Members:
    """Reads a picture out of its shard."""

    paths: tuple[str, ...]
    members: np.ndarray
    """int64 [len,3]: shard, offset, size"""

    def __call__(self, image_id: int) -> Image.Image:
        shard, offset, size = map(int, self.members[image_id])
        if size > MAX_BYTES:
            raise ImageError(TOO_LARGE_FILE)
        try:
            with open(self.paths[shard], "rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError:
            raise ImageError("Its shard cannot be opened. Check that the file exists and may be read.") from None
        return decode_image(data)


# Finding shards


def _find(spec: str) -> list[str]:
    """Absolute paths, sorted."""
    pattern = os.path.expanduser(spec.partition(":")[2])
    if os.path.isdir(pattern):
        paths = [os.path.join(pattern, name) for name in os.listdir(pattern) if _TAR.search(name)]
    else:
        names = [pattern] if os.path.isfile(pattern) else _expanded(spec, pattern)
        found = {name: glob.glob(name) if "\0" not in name else [] for name in names}
        found |= {name: [name] for name in names if os.path.isfile(name)}  # a name may hold a bracket
        if missing := [name for name, matches in found.items() if not matches]:
            raise DataError(
                f"{printable(spec)!r}: there is no shard {printable(missing[0])!r}. Give a tar file, a folder of them, "
                "or a pattern of their names such as wds:data/train-{000..009}.tar."
            )
        paths = [path for matches in found.values() for path in matches]
    paths = sorted({os.path.abspath(path) for path in paths if os.path.isfile(path)})
    if not paths:
        raise DataError(f"{printable(spec)}: no shards in this folder. It needs files ending in .tar.")
    return paths


def _expanded(spec: str, pattern: str) -> list[str]:
    """`{a,b}` and `{000..009}` written out; braces do not nest."""
    choices = []
    for piece in _BRACES.split(pattern):
        choices.append(_choices(piece))
        if math.prod(map(len, choices)) > MAX_SHARDS:
            raise DataError(f"{printable(spec)} names more than {MAX_SHARDS} shards. Give fewer at once.")
    return ["".join(pieces) for pieces in itertools.product(*choices)]


def _choices(piece: str) -> Sequence[str]:
    if not _BRACES.fullmatch(piece):
        return [piece]
    if "," in piece:
        return piece[1:-1].split(",")
    first, last = piece[1:-1].split("..")
    width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
    low, high = sorted((int(first), int(last)))
    return [f"{number:0{width}}" for number in range(low, high + 1)]


# Reading headers


class _Headers(io.BufferedReader):
    """A tar file as tarfile reads it: refuses header fields of absurd size."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError
        return super().read(size)


def _members(spec: str, title: str, file: _Headers) -> tuple[list[Member], str]:
    """The plain files of a tar, whole ones only, and what is wrong with the rest in words ("" if nothing is)."""
    if file.peek(8).startswith(COMPRESSED):
        raise DataError(
            f"{printable(spec)}: {title} is compressed, so single pictures cannot be read out of it. Unpack it to a "
            "plain .tar (gunzip, unxz or the like); pictures are compressed already."
        )
    members, left_out, end = [], 0, os.fstat(file.fileno()).st_size
    try:
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  the file is the caller's
        while (member := tar.next()) is not None:
            if member.size < 0 or member.offset_data + member.size > end or tar.offset <= member.offset:
                raise tarfile.ReadError
            if member.isreg() and not member.issparse():
                members.append(Member(member.name, member.offset_data, member.size))
            else:
                left_out += not member.isdir()
        file.seek(tar.offset)
        is_whole = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)  # the mark of the end
    except Exception:  # tarfile meets hostile headers and raises anything
        is_whole = False
    note = f"{title}: links and devices are passed over ({left_out})." if left_out else ""
    if not is_whole:
        note = f"{title} ends early or is damaged (files before that: {len(members)}). Copy or download it again."
    return members, note


def _samples(members: list[Member]) -> list[dict[str, Member]]:
    """Groups of neighbours that share their name up to the first dot, by what follows it in lower case."""
    samples: list[dict[str, Member]] = []
    known = None
    for member in members:
        folder, _, file = member.name.rpartition("/")
        stem, _, suffix = file.partition(".")
        if not stem or not suffix:
            continue
        if known != (folder, stem):
            samples.append({})
        known = (folder, stem)
        samples[-1].setdefault(suffix.lower(), member)
    return samples


def _picture_of(sample: dict[str, Member], suffixes: frozenset[str]) -> Member | None:
    """The file whose ending is a picture's, `0001.jpg` before `0001.mask.png`."""
    pictures = [suffix for suffix in sample if "." + suffix.rpartition(".")[2] in suffixes]
    return sample[min(pictures, key=lambda suffix: suffix.count("."))] if pictures else None


# Classes


def _told(file: BinaryIO, sample: dict[str, Member]) -> tuple[int | None, str | None]:
    """Number and name of a sample's class, None where not told."""
    try:
        told: Any = json.loads(_text(file, sample.get("json")) or "{}")
    except (ValueError, RecursionError):
        told = {}
    label, name = (told.get("label"), _word(told.get("class_name"))) if isinstance(told, dict) else (None, None)
    label = _text(file, sample.get("cls")) or label
    number = _number(label)
    if number is None:
        return None, name or _word(label)
    return number, name or _word(_text(file, sample.get("txt")))


def _text(file: BinaryIO, member: Member | None) -> str:
    if member is None or member.size > MAX_TOLD_BYTES:
        return ""
    file.seek(member.offset)
    return file.read(member.size).decode(errors="replace").strip()


def _number(label: Any) -> int | None:
    try:
        return int(label) if isinstance(label, int | str) and int(label) >= 0 else None
    except ValueError:
        return None


def _word(label: Any) -> str | None:
    """One short line of text; not a negative number, which says unknown."""
    is_word = isinstance(label, str) and re.fullmatch(r"(?!-[0-9]+$).{1,200}", label)
    return printable(label) if is_word else None


def _classes(numbers: list[int | None], names: list[str | None]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Classes in the order of their numbers if there are any, with their names where no number has two."""
    if all(number is None for number in numbers):
        return ranked(names)
    labels, class_names = ranked(numbers)
    pairs = {(str(number), name) for number, name in zip(numbers, names, strict=True) if number is not None and name}
    named = dict(pairs) if len(dict(pairs)) == len(pairs) else {}
    return labels, tuple(named.get(number, number) for number in class_names)
