"""Pictures in a zip, which may be hostile: told by its directory, read one at a time into memory, written nowhere."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from itertools import islice
from pathlib import Path
from typing import Any

from memssl_core.data.images import MAX_BYTES, TOO_LARGE_FILE, printable
from memssl_core.errors import DataError, ImageError

MAX_MEMBERS = 200_000
MAX_DIRECTORY_BYTES = 24 << 20
MAX_TOTAL_BYTES = 32 << 30
MAX_RATIO = 200
"""unpacked to packed bytes; even drawings saved as BMP stay below it [assumption]"""
RATIO_FROM_BYTES = 1 << 20
"""smaller things may be packed as well as they like"""
MAX_NAME = 1_000
PIECE = 1 << 20  # read at once; `_Bounded` refuses more than a directory may take

LEADS_OUT = "Its name leads out of the archive, so it was not read."
LONG_NAME = f"Its name has more than {MAX_NAME} characters. Give it a shorter one."
LINK = "It is a link or a device, not a file, so it was not read."
ENCRYPTED = "It is encrypted. Pack it again without a password."
METHOD = "It is packed by a method that is not read here. Pack it again as an ordinary zip."
BOMB = f"It unpacks to more than {MAX_RATIO} times its size, as only traps do, so it was not read."
TWICE = "The archive holds another file of this name; only the first was read."
NESTED = "An archive inside the archive is not opened. Unpack it first."
DAMAGED = "It is damaged in the archive. Make the archive again."

_MISTAKES = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, RuntimeError, OverflowError)


class _Bounded(io.BufferedReader):
    """A zip file that refuses to be read in one piece larger than any honest directory."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile("directory too large")
        return super().read(size)


def open_zip(path: Path) -> zipfile.ZipFile:
    """The archive, whose counts and sizes are those of an honest one; several threads may read its members, and whoever
    has it closes its `fp`.

    Raises: DataError if it cannot be read, or holds too many files, too much, or the same bytes more than once.
    """
    name = printable(path.name)
    raw: Any = None
    try:
        raw = _Bounded(io.FileIO(path))
        archive = zipfile.ZipFile(raw)
    except _MISTAKES:
        if raw is not None:
            raw.close()
        raise DataError(f"{name} is not a zip file that can be read. Copy it again or make it anew.") from None
    infos, size = archive.infolist(), path.stat().st_size
    packed, unpacked = sum(info.compress_size for info in infos), sum(info.file_size for info in infos)
    reason = ""
    if len(infos) > MAX_MEMBERS:
        reason = f"holds {len(infos):,} files; at most {MAX_MEMBERS:,} are read from one archive"
    elif unpacked > MAX_TOTAL_BYTES:
        reason = f"unpacks to {unpacked / 2**30:,.0f} GB; at most {MAX_TOTAL_BYTES >> 30} GB are read from one archive"
    elif packed > size or (unpacked > RATIO_FROM_BYTES and unpacked > MAX_RATIO * size):
        reason = "unpacks to far more than it could hold, as only traps do"
    if reason:
        raw.close()
        raise DataError(f"{name} {reason}. Give a folder, or a smaller archive.")
    return archive


def members(archive: zipfile.ZipFile, suffixes: frozenset[str]) -> tuple[list[zipfile.ZipInfo], list[tuple[str, str]]]:
    """The pictures of an archive, and (name, reason) of what looks like one but is not read.

    Folders, hidden files, those of `__MACOSX` and files with other endings are passed over.
    """
    good: list[zipfile.ZipInfo] = []
    bad: list[tuple[str, str]] = []
    seen: set[str] = set()
    for info in archive.infolist():
        path = member_path(info)
        parts = path.split("/")
        suffix = Path(parts[-1]).suffix.lower()
        if info.is_dir() or parts[0] == "__MACOSX" or suffix not in (*suffixes, ".zip"):
            continue
        if any(part.startswith(".") and part not in (".", "..") for part in parts):
            continue
        reason = NESTED if suffix == ".zip" else _why_not(info, path) or (TWICE if path in seen else "")
        seen.add(path)
        if reason:
            bad.append((path[:MAX_NAME], reason))
        else:
            good.append(info)
    return good, bad


def member_path(info: zipfile.ZipInfo) -> str:
    return info.filename.replace("\\", "/")


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A member's bytes, at most MAX_BYTES, their checksum right. Raises ImageError."""
    try:
        with archive.open(info) as file:
            pieces = iter(lambda: file.read(min(PIECE, info.file_size + 1)), b"")
            data = b"".join(islice(pieces, info.file_size // PIECE + 2))
    except _MISTAKES:
        raise ImageError(DAMAGED) from None
    if len(data) != info.file_size:
        raise ImageError(DAMAGED)
    return data


def _why_not(info: zipfile.ZipInfo, path: str) -> str:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if len(path) > MAX_NAME:
        return LONG_NAME
    if path.startswith("/") or path[1:2] == ":" or {"", ".", ".."} & {*path.split("/")}:
        return LEADS_OUT
    if kind not in (0, stat.S_IFREG):
        return LINK
    if info.flag_bits & 0x1:
        return ENCRYPTED
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return METHOD
    if info.file_size > MAX_BYTES:
        return TOO_LARGE_FILE
    if info.file_size > RATIO_FROM_BYTES and info.file_size > MAX_RATIO * info.compress_size:
        return BOMB
    return ""
