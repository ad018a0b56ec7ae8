"""Folders that may be read from the page: those declared with `--root NAME=DIR`, and nothing outside them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memssl_core.errors import ConfigError, DataError

Roots = Mapping[str, Path]
MAX_FOLDERS = 500
TABLE, ARCHIVE = ".parquet", ".zip"
GONE = "This folder is not there (any more); choose another one."


def declared(words: Sequence[str]) -> dict[str, Path]:
    """`["photos=/srv/photos"]` -> {"photos": Path}. ConfigError for another form, a missing folder, a name twice."""
    roots: dict[str, Path] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        path = Path(folder).expanduser()
        if not (name and equals and folder) or not name.isprintable() or "/" in name:
            raise ConfigError(f"--root {word} is not of the form NAME=DIR; write for example --root photos=~/Pictures.")
        if name in roots:
            raise ConfigError(f"--root {name} is given twice; choose another name for one of them.")
        if not path.is_dir():
            raise ConfigError(f"--root {name}: there is no folder {folder}.")
        roots[name] = path.resolve()
    return roots


def inside(roots: Roots, name: str, path: str) -> Path:
    """The folder `path` ("trip/day 1", "" for the root itself) of a root. DataError for anything outside it."""
    root = roots.get(name)
    parts = [part for part in path.split("/") if part]
    if root is None or any(part.startswith(".") or "\0" in part or "\\" in part for part in parts):
        raise DataError(GONE)
    folder = root.joinpath(*parts).resolve()
    if not folder.is_relative_to(root) or not folder.is_dir():
        raise DataError(GONE)
    return folder


def table_inside(roots: Roots, name: str, path: str) -> Path:
    """The table at `path` of a root. DataError for anything outside it, or that is no table."""
    return _file_inside(roots, name, path, "tables", "This table is not there (any more); choose another one.")


def archive_inside(roots: Roots, name: str, path: str) -> Path:
    """The zip at `path` of a root. DataError for anything outside it, or that is no zip."""
    return _file_inside(roots, name, path, "archives", "This archive is not there (any more); choose another one.")


def _file_inside(roots: Roots, name: str, path: str, kind: str, gone: str) -> Path:
    parent, _, file = path.rpartition("/")
    folder = inside(roots, name, parent)
    if file not in listing(roots, name, parent)[kind]:
        raise DataError(gone)
    return folder / file


def listing(roots: Roots, name: str, path: str) -> dict[str, Any]:
    """`{path, folders, more, pictures, tables, archives}`: names of the folders inside, how many picture files lie here
    directly, and names of the Parquet and zip files that do.

    What is hidden, and links that lead out of the root, are left out.
    """
    from memssl_core.data.images import picture_suffixes

    folder, suffixes = inside(roots, name, path), picture_suffixes()
    folders, files, pictures = [], {TABLE: [], ARCHIVE: []}, 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir() and _stays(entry.path, roots[name]) and _is_text(entry.name):
                    folders.append(entry.name)
                elif (suffix := os.path.splitext(entry.name)[1].lower()) in suffixes:
                    pictures += 1
                elif suffix in files and entry.is_file() and _stays(entry.path, roots[name]) and _is_text(entry.name):
                    files[suffix].append(entry.name)
    except OSError:
        raise DataError("This folder cannot be read; choose another one.") from None
    for names in (folders, *files.values()):
        names.sort(key=str.casefold)
    more = max(0, len(folders) - MAX_FOLDERS)
    shown = {"folders": folders, "tables": files[TABLE], "archives": files[ARCHIVE]}
    shown = {kind: names[:MAX_FOLDERS] for kind, names in shown.items()}
    return {"path": path.strip("/"), "more": more, "pictures": pictures, **shown}


def refuse_links_out(folder: Path, root: Path) -> None:
    """DataError if a link anywhere below `folder`, also behind links that stay, leads out of `root`."""
    seen = {os.path.realpath(folder)}
    for here, folders, files in os.walk(folder, followlinks=True):
        for name in [*folders, *files]:
            path = os.path.join(here, name)
            if os.path.islink(path) and not _stays(path, root):
                raise DataError(f"{name!r} in this folder is a link that leads out of it; remove it or choose another.")
        kept = []
        for name in folders:
            real = os.path.realpath(os.path.join(here, name))
            if real not in seen:
                seen.add(real)
                kept.append(name)
        folders[:] = kept


def _stays(path: str, root: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(root)


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:  # bytes that are no UTF-8
        return False
