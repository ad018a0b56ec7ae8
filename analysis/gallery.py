"""Galleries: pictures of one's own, embedded once, brought up to date, and opened to be searched.

A gallery is a folder NAME in `galleries_dir()`:
    gallery.json                the newest whole state, replaced atomically; a reader sees one state or the next
    g000001/model.json          a generation: the embeddings of one model and transform
    g000001/parts/              `parts.py`: embeddings, thumbnails, one row for each content, in the order of embedding
    g000001/state-000001/       vectors.npy float16 [N, C] unit rows, rows.parquet (where each row lies in the parts),
                                items.parquet (the files and their rows), skipped.parquet (what could not be read, why),
                                above EXACT_UP_TO rows index.faiss and index.json
Embedding anew, by another model, makes another generation; the old one answers until the new one is whole.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from PIL import Image

from analysis.collect import SKIPPED, Collected
from analysis.index import EXACT_UP_TO, INDEX, Ivf, has_faiss, read_index, write_index
from analysis.index import FACTS as INDEX_FACTS
from analysis.parts import ROWS, Parts, thumbnail_at
from analysis.pictures import ABSENT, Changed, content_of, open_pictures
from memssl_core.data.images import decode_image, printable
from memssl_core.errors import DataError, ImageError, ModelError
from memssl_core.jobs import Emit, replacing, write_atomically
from memssl_core.paths import galleries_dir, without_folders

FORMAT = 1
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,79}", re.ASCII)
FACTS, CLAIM = "gallery.json", "model.json"
ITEMS = pa.schema(
    [("row", pa.int32()), ("path", pa.string()), ("content", pa.string()), ("size", pa.int64())]
    + [("stamp", pa.int64()), ("class_name", pa.string()), ("added_s", pa.float64())]
)

GARBAGE = 0.25
"""share of rows without a file above which the parts are written anew"""
DAMAGED = "Gallery {} is damaged; delete it and make it again."
OTHER = "This picture has been changed since; update the gallery."

compute: Any = pyarrow.compute


@dataclass(frozen=True, eq=False)
class Gallery:
    """An opened gallery, read-only: N rows, one for each content, and the files that hold it.

    It stays as it was opened while the gallery is brought up to date, but for thumbnails, which may go.
    """

    name: str
    facts: dict[str, Any]
    """gallery.json: data, model, model_hash, transform, width, created_s, updated_s, pictures, rows, skipped, …"""
    vectors: np.ndarray
    """float16 [N, C] unit rows, memory-mapped"""
    index: Ivf | None
    """of large galleries; None: searched exactly"""
    live: np.ndarray | None
    """bool [N]: rows whose files are still there; None: all"""
    items: pa.Table = field(repr=False)
    """ITEMS, increasing by row"""
    rows: pa.Table = field(repr=False)
    """ROWS of the parts"""
    folder: Path = field(repr=False)
    """of this state"""
    _ends: np.ndarray = field(repr=False)  # int64 [N + 1], where a row's items begin

    def __len__(self) -> int:
        """How many different pictures can be found."""
        return len(self.vectors) if self.live is None else int(self.live.sum())

    @property
    def revision(self) -> str:
        """Changes with every update: what a cache compares."""
        return f"{self.facts['generation']}-{self.facts['state']}"

    @property
    def class_names(self) -> list[str]:
        """The names of the class folders, sorted."""
        return sorted(self.items["class_name"].drop_null().unique().to_pylist())

    def paths_of(self, row: int) -> list[str]:
        """The relative paths of the files with this content, sorted; none if they have been deleted."""
        begin, end = self._items_of(row)
        return self.items["path"][begin:end].to_pylist()

    def class_name(self, row: int) -> str | None:
        begin, end = self._items_of(row)
        return self.items["class_name"][begin].as_py() if end > begin else None

    def uri(self, row: int) -> str:
        """The first of the row's paths, "" if its files have been deleted."""
        return next(iter(self.paths_of(row)), "")

    def size_px(self, row: int) -> tuple[int, int]:
        """Width and height of the picture."""
        return self._told(row, "width"), self._told(row, "height")

    def thumbnail(self, row: int) -> bytes:
        """WebP of at most 256 px; b"" if its part has gone."""
        return thumbnail_at(self.folder.parent / "parts", self._told(row, "part"), self._told(row, "at"))

    def original(self, row: int) -> Image.Image:
        """The picture itself, read from where it came from. ImageError if it is not there any more, or was changed."""
        paths, content, reason = self.paths_of(row), self._told(row, "content"), ImageError(ABSENT)
        try:
            pictures = open_pictures(self.facts["data"])
        except DataError:
            raise reason from None
        for path in paths:  # of copies one may be left
            try:
                return pictures.named(path, content)
            except Changed:
                reason = ImageError(OTHER)
            except ImageError as found:
                reason = found
        raise reason

    def picture(self, row: int) -> Image.Image:
        """The original if it is still there, else its thumbnail."""
        try:
            return self.original(row)
        except ImageError:
            return decode_image(self.thumbnail(row))

    def row_of(self, data: bytes) -> int | None:
        """The row of the very same file, None if the gallery does not hold it."""
        row = compute.index(self.rows["content"], content_of(data)).as_py()
        return row if row >= 0 and (self.live is None or self.live[row]) else None

    def keep(self, class_name: str | None = None, path: str | None = None) -> np.ndarray | None:
        """bool [N]: rows with a file of this class whose path holds these words, whatever their case; None: all."""
        hits: Any = None
        if class_name:
            hits = compute.fill_null(compute.equal(self.items["class_name"], class_name), False)
        if path:
            found = compute.match_substring(self.items["path"], path, ignore_case=True)
            hits = found if hits is None else compute.and_(hits, found)
        if hits is None:
            return self.live
        kept = np.zeros(len(self.vectors), bool)
        kept[self.items["row"].to_numpy()[hits.to_numpy()]] = True
        return kept

    def describe(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """Plain values: id (the row), uri, copies (how many files hold it), class_name, width and height in px."""
        return [
            {
                "id": row,
                "uri": self.uri(row),
                "copies": len(self.paths_of(row)),
                "class_name": self.class_name(row),
                "width": self.size_px(row)[0],
                "height": self.size_px(row)[1],
            }
            for row in map(int, rows)
        ]

    def skipped(self) -> list[tuple[str, str]]:
        """Path and reason of what could not be read at the last update."""
        return [(printable(one["path"]), one["reason"]) for one in self.skipped_table().to_pylist()]

    def skipped_table(self) -> pa.Table:
        """SKIPPED of `collect.py`. ModelError if it cannot be read."""
        try:
            return pq.read_table(self.folder / "skipped.parquet", schema=SKIPPED)
        except (OSError, ValueError, pa.ArrowException):
            raise ModelError(DAMAGED.format(self.name)) from None

    def _told(self, row: int, column: str) -> Any:
        """ModelError for a row that is not there, as all that ask about a row."""
        if not 0 <= row < len(self.rows):
            raise ModelError(f"There is no picture {row} in gallery {self.name}.")
        return self.rows[column][int(row)].as_py()

    def _items_of(self, row: int) -> tuple[int, int]:
        self._told(row, "at")
        begin, end = self._ends[row : row + 2].tolist()
        return begin, end

    def require(self, model_hash: str, transform: dict[str, Any]) -> None:
        """ModelError unless the gallery was embedded by this model with this transform."""
        refuse_other(self.name, self.facts, model_hash, transform)


def open_gallery(name: str | Path) -> Gallery:
    """Open a gallery by its name in `galleries_dir()`, or by its folder.

    Raises: ModelError if there is none, or it is not finished or not readable.
    """
    root = name if isinstance(name, Path) else gallery_folder(name)
    facts = None
    for _ in range(3):  # an update may remove the state that was just read about
        facts = read_gallery(root)
        if facts is None:
            break
        try:
            return _opened(root, facts)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, LookupError, TypeError, pa.ArrowException):
            break
    if facts is not None:
        raise ModelError(DAMAGED.format(root.name))
    if any(root.glob(f"g*/{CLAIM}")):
        raise ModelError(f"Gallery {root.name} is not finished; the same command, or Update, goes on with it.")
    raise ModelError(f"There is no gallery {printable(root.name)}; make it with `python -m analysis gallery`.")


def gallery_folder(name: str) -> Path:
    """Where a gallery lies or would lie. ModelError for a name that cannot be one."""
    if not NAME.fullmatch(name):
        raise ModelError(
            f"{printable(name[:80])!r} cannot name a gallery; use up to 80 letters, digits, '.', '-' and '_', "
            "beginning with a letter or digit."
        )
    return galleries_dir() / name


def galleries() -> list[dict[str, Any]]:
    """Facts of all galleries as strangers may read them, by name; `finished` False for what never was whole, `problem`
    a sentence for what cannot be opened."""
    root = galleries_dir()
    found = []
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if not NAME.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
            continue
        facts, problem = None, ""
        try:
            facts = read_gallery(folder)
        except ModelError as reason:
            problem = str(reason)
        told = facts or newest_claim(folder)
        if told:
            shown = {name: without_folders(str(told[name])) for name in ("data", "model") if told.get(name)}
            standing = {"name": folder.name, "finished": facts is not None, "problem": problem}
            found.append({**told, **shown, **standing})
    return found


def delete_gallery(name: str) -> None:
    """Remove a gallery; the pictures themselves stay. ModelError if there is none; DataError if it is being updated."""
    root = gallery_folder(name)
    if root.is_symlink() or not root.is_dir() or not ((root / FACTS).is_file() or newest_claim(root)):
        raise ModelError(f"There is no gallery {name}.")
    with claimed(root):
        gone = root.with_name(f".{name}.{secrets.token_hex(4)}.gone")
        root.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def claimed(root: Path) -> Iterator[None]:
    """Only one process changes a gallery at a time. DataError if another one does."""
    root.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root.with_name(f".{root.name}.lock"), timeout=0):
            yield
    except Timeout:
        raise DataError(f"Gallery {root.name} is being updated just now; wait until that ends, or stop it.") from None


def generation_folder(root: Path, generation: int) -> Path:
    return root / f"g{generation:06d}"


def state_folder(root: Path, generation: int, state: int) -> Path:
    return generation_folder(root, generation) / f"state-{state:06d}"


def read_gallery(root: Path) -> dict[str, Any] | None:
    """The facts of the newest whole state, None if there is none. ModelError for another version's."""
    try:
        facts = json.loads((root / FACTS).read_bytes())
        known = facts["format"], int(facts["generation"]), int(facts["state"]), int(facts["width"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if known[0] != FORMAT:
        raise ModelError(
            f"Gallery {root.name} was made by another version of this program; delete it and make it anew."
        )
    return facts


def newest_claim(root: Path) -> dict[str, Any] | None:
    """The CLAIM of the newest generation, with its number."""
    for folder in sorted(root.glob("g??????"), reverse=True):
        try:
            return {**json.loads((folder / CLAIM).read_bytes()), "generation": int(folder.name[1:])}
        except (OSError, ValueError, TypeError):
            continue
    return None


def refuse_other(name: str, facts: dict[str, Any], model_hash: str, transform: dict[str, Any]) -> None:
    same = facts["model_hash"] == model_hash and facts["transform"] == json.loads(json.dumps(transform))
    if not same:
        raise ModelError(
            f"Gallery {name} was embedded by {without_folders(str(facts['model']))}, not by this model, or not at this "
            "size. Open that one, or embed the gallery again (--again)."
        )


def write_state(
    root: Path,
    claim: dict[str, Any],
    parts: Parts,
    found: Collected,
    old: Gallery | None,
    *,
    emit: Emit,
    should_stop: Callable[[], bool],
) -> bool:
    """Write what was found beside the old state, then put it in its place; False if it was stopped before that."""
    told = read_gallery(root) or {}
    generation, number = parts.folder.parent, int(told.get("state", 0)) + 1
    state = state_folder(root, int(generation.name[1:]), number)
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir()
    try:
        rows, items = _without_garbage(parts, found)
        is_whole = _write_files(state, claim, parts, rows, old, emit=emit, should_stop=should_stop)
        if is_whole:
            items = _dated(items, old.items if old else ITEMS.empty_table())
            for name, table in (("rows", rows), ("items", items), ("skipped", found.skipped)):
                with replacing(state / f"{name}.parquet") as file:
                    pq.write_table(table, file, compression="zstd")
            counts = {"pictures": len(items), "rows": len(items["row"].unique()), "skipped": len(found.skipped)}
            files = [*state.iterdir(), *parts.folder.iterdir()]
            times = {"created_s": told.get("created_s", time.time()), "updated_s": time.time()}
            place = {"generation": int(generation.name[1:]), "state": number}
            size = {"bytes": sum(path.stat().st_size for path in files)}
            facts = {"format": FORMAT, "name": root.name, **claim, **times, **place, **counts, **size}
            write_atomically(root / FACTS, json.dumps(facts).encode())
    except BaseException:
        shutil.rmtree(state, ignore_errors=True)
        raise
    if not is_whole:
        shutil.rmtree(state, ignore_errors=True)
        return False
    parts.keep_only(rows)
    earlier = [folder for folder in root.glob("g??????") if folder.name < generation.name]  # a later one is being made
    for folder in (*earlier, *generation.glob("state-*")):
        if folder != state:
            shutil.rmtree(folder, ignore_errors=True)
    return True


def _write_files(
    state: Path,
    claim: dict[str, Any],
    parts: Parts,
    rows: pa.Table,
    old: Gallery | None,
    *,
    emit: Emit,
    should_stop: Callable[[], bool],
) -> bool:
    """Vectors and, of very many, the index; what is the same as in the old state is linked. False if it was stopped."""
    here = old.folder if old and old.folder.parent == state.parent else None
    if here and old and old.rows.equals(rows):
        for name in ("vectors.npy", INDEX, INDEX_FACTS):
            _linked(here / name, state / name)
    else:
        _write_vectors(state / "vectors.npy", parts.embeddings(rows), (len(rows), int(claim["width"])))
    if len(rows) <= EXACT_UP_TO or not has_faiss() or _index_of(state, len(rows)):
        return True
    for name in (INDEX, INDEX_FACTS):  # damaged ones, which are the old state's files too
        (state / name).unlink(missing_ok=True)
    has_grown = bool(here and old and old.rows.equals(rows.slice(0, len(old.rows))))
    vectors = np.load(state / "vectors.npy", mmap_mode="r")
    grown_from = here if has_grown else None
    return write_index(vectors, state, old=grown_from, emit=emit, should_stop=should_stop) is not None


def _without_garbage(parts: Parts, found: Collected) -> tuple[pa.Table, pa.Table]:
    """The rows, without those that no file holds any more if there are many, and the items with their rows."""
    items = found.items.select([name for name in ITEMS.names if name != "added_s"])
    live = np.unique(items["row"].to_numpy())
    if len(live) >= (1 - GARBAGE) * len(found.rows):
        return found.rows, items
    rows = parts.compacted(found.rows.take(live))
    row = compute.index_in(items["content"], value_set=rows["content"].combine_chunks())
    return rows, items.set_column(0, "row", row).filter(compute.is_valid(row))


def _dated(items: pa.Table, before: pa.Table) -> pa.Table:
    """ITEMS, increasing by row: with the time when a file with this content was first found there."""
    key = ["path", "content"]
    dated = items.join(before.select([*key, "added_s"]), keys=key, join_type="left outer").select(ITEMS.names)
    added_s = compute.fill_null(dated["added_s"], time.time())
    dated = dated.set_column(ITEMS.get_field_index("added_s"), "added_s", added_s).cast(ITEMS)
    return dated.sort_by([("row", "ascending"), ("path", "ascending")])


def _write_vectors(path: Path, chunks: Iterable[np.ndarray], shape: tuple[int, int]) -> None:
    with replacing(path) as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            file.write(np.ascontiguousarray(chunk, "<f2").tobytes())


def _index_of(state: Path, count: int) -> Ivf | None:
    index = read_index(state)
    return index if index and index.facts.rows == count else None


def _linked(old: Path, new: Path) -> None:
    """The same file in the new state, where there is one."""
    if old.exists():
        try:
            os.link(old, new)
        except OSError:  # a file system without links
            shutil.copyfile(old, new)


def _opened(root: Path, facts: dict[str, Any]) -> Gallery:
    state = state_folder(root, int(facts["generation"]), int(facts["state"]))
    vectors = np.lib.format.open_memmap(state / "vectors.npy", mode="r")  # which takes no other kind of file
    rows, items = pq.read_table(state / "rows.parquet"), pq.read_table(state / "items.parquet")
    held = items["row"].to_numpy()
    is_whole = vectors.shape == (len(rows), facts["width"]) and ROWS.equals(rows.schema) and ITEMS.equals(items.schema)
    if not is_whole or (len(held) and not 0 <= held[0] <= held[-1] < len(rows)):
        raise ValueError("the files of this state do not belong together")
    ends = np.searchsorted(held, np.arange(len(rows) + 1))
    live = np.diff(ends) > 0
    index = _index_of(state, len(rows))
    return Gallery(root.name, facts, vectors, index, None if live.all() else live, items, rows, state, ends)
