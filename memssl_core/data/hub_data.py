"""Data sets of the Hugging Face Hub, through the `datasets` library: downloaded as a list, or streamed in order.

`hf:OWNER/NAME[/CONFIG][:SPLIT]`, for example `hf:uoft-cs/cifar10:test` or `hf:OWNER/NAME/small:train`; a set without
owner is `hf:NAME[:SPLIT]`. Cache, tokens, endpoint and offline mode are the library's (HF_HOME, HF_TOKEN, HF_ENDPOINT,
HF_HUB_OFFLINE). Pictures are decoded by `decode_image` alone, and no code of a repository runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from PIL import Image

from memssl_core.data.datasets import Images, classes_of
from memssl_core.data.images import MAX_BYTES, decode_image, printable
from memssl_core.data.streams import Item, share
from memssl_core.errors import DataError, ImageError

FORM = "hf:OWNER/NAME[/CONFIG][:SPLIT]"
_NAME = r"\w[\w.-]*"
_SPEC = re.compile(rf"hf:({_NAME}|{_NAME}/{_NAME}(?:/(?P<config>[^/:]+))?)(?::(?P<split>[\w.-]+))?", re.ASCII)
_BEFORE_NAME = re.compile(r"zip://|hf://datasets/[^@]*@[^/]*/|.*/(?:snapshots|extracted)/[^/]*/")  # in a file's path


def open_hub_images(spec: str) -> Images:
    """Download a data set (every split of it, as `datasets` does; once) and list the pictures of one split.

    The picture column is the one of type Image, "image" before others; the classes come from "label", else the first
    ClassLabel, else "cls". Without SPLIT it is the only one, or "train".

    Raises: DataError, in one sentence, whatever went wrong.
    """
    with _in_plain_words(spec):
        return _downloaded(spec, *_builder(spec))


def open_hub_rows(spec: str) -> HubRows | Images:
    """Open one split for streaming, only its description being fetched; the list of it if it was downloaded before.

    Raises: as `open_hub_images` does.
    """
    with _in_plain_words(spec):
        builder, repo, split = _builder(spec)
        if os.path.isdir(builder.cache_dir):
            return _downloaded(spec, builder, repo, split)
        rows = builder.as_streaming_dataset(split=split)
        image, label, names = _columns(spec, rows.features)
        rows = rows.decode(False).select_columns([name for name in (image, label) if name])
        files = tuple(map(str, builder.config.data_files[split]))
        told = (builder.info.splits or {}).get(split)
        count = told.num_examples if told and told.num_examples > 0 else None
        return HubRows(spec, repo, rows, image, label, names, files, count)


def _downloaded(spec: str, builder: Any, repo: str, split: str) -> Images:
    import datasets

    builder.download_and_prepare()
    rows = builder.as_dataset(split=split)
    image, label, names = _columns(spec, rows.features)
    paths = [path for chunk in rows.data.column(image).chunks for path in chunk.field("path").to_pylist()]
    values = rows.data.column(label).to_pylist() if label else []
    pictures = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    uris = tuple(_uri(path, row) for row, path in enumerate(paths))
    return Images(spec, uris, *classes_of(values, names), partial(_read_row, pictures, image, repo))


def _read_row(rows: Any, image: str, repo: str, row: int) -> Image.Image:
    return _picture(rows[row][image], repo)


@dataclass(frozen=True)
class HubRows:
    """One split of a data set, read in order over the network."""

    spec: str
    repo: str
    rows: Any  # datasets.IterableDataset
    image: str
    label: str | None
    names: tuple[str, ...]
    files: tuple[str, ...]
    count: int | None
    """as the Hub declares it; not checked"""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """None where the labels are numbers or words without a list of them."""
        return self.names if self.names or self.label is None else None

    def walk(self, first_id: int, part: int, parts: int) -> Generator[Item, None, int]:
        """What `Stream.walk` is."""
        with _in_plain_words(self.spec):
            if parts > 1 and all(file.endswith(".parquet") for file in self.files):
                return (yield from self._walk_groups(first_id, part, parts))
            row = -1
            for row, cells in enumerate(self.rows):
                if row % parts == part:
                    yield self._item(first_id, row, cells)
            return first_id + row + 1

    def _walk_groups(self, first_id: int, part: int, parts: int) -> Generator[Item, None, int]:
        """Fetch only the row groups that the part lies in."""
        total = sum(map(sum, self.groups))
        wanted = share(total, part, parts)
        start = 0
        for i, groups in enumerate(self.groups):
            file = None
            for j, length in enumerate(groups):
                if max(start, wanted.start) < min(start + length, wanted.stop):
                    file = file or self.rows.shard(num_shards=len(self.files), index=i).reshard()
                    for row, cells in enumerate(file.shard(num_shards=len(groups), index=j), start):
                        if row in wanted:
                            yield self._item(first_id, row, cells)
                start += length
        return first_id + total

    @cached_property
    def groups(self) -> list[list[int]]:
        """Rows in each row group of each Parquet file, from the files' ends alone."""
        import pyarrow.parquet as pq
        from datasets.utils.file_utils import xopen

        def lengths(file: str) -> list[int]:
            with xopen(file, "rb") as opened:
                told = pq.read_metadata(opened)
            return [told.row_group(group).num_rows for group in range(told.num_row_groups)]

        with ThreadPoolExecutor(16) as threads:
            return list(threads.map(lengths, self.files))

    def _item(self, first_id: int, row: int, cells: dict[str, Any]) -> Item:
        cell, value = cells[self.image], cells[self.label] if self.label else None
        uri = _uri(cell and cell["path"], row)
        labels, names = classes_of([value], self.names)
        label = -1 if labels is None else int(labels[0])
        class_name = names[label] if label >= 0 else None
        if not self.names and class_name is not None:
            label = value if isinstance(value, int) else -1  # no list to number the classes by
        return Item(
            first_id + row, uri, None if label < 0 else label, class_name, partial(_read_named, uri, cell, self.repo)
        )


def _read_named(uri: str, cell: dict[str, Any] | None, repo: str) -> Image.Image:
    try:
        return _picture(cell, repo)
    except ImageError as problem:
        raise ImageError(f"{uri}: {problem}") from None


def _picture(cell: dict[str, Any] | None, repo: str) -> Image.Image:
    """A cell holds the bytes of a file, or names a file of the data set: in the library's cache or on the Hub."""
    data, path = (cell["bytes"], cell["path"]) if cell else (None, None)
    if data is not None:
        return decode_image(data)
    if not path:
        raise ImageError("This row holds no picture. Remove it from the data set.")
    if not _is_inside(path, repo):
        raise ImageError("This row names a file outside its data set, which is not opened.")
    from datasets.utils.file_utils import xopen

    try:
        with xopen(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except Exception:  # of the network, of zip files
        raise ImageError("This picture cannot be fetched. Check the connection and try again.") from None
    return decode_image(data)


def _is_inside(path: str, repo: str) -> bool:
    """Whether a row's path, a stranger's words, leads to the data set's own files, or to a zip among them."""
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    *within, home = path.split("::")
    if len(within) > 1 or not all(name.startswith("zip://") for name in within):
        return False
    if home.startswith("hf://"):
        return home.startswith(f"hf://datasets/{repo}@") and ".." not in home.split("/")
    own = (os.path.join(HF_HUB_CACHE, "datasets--" + repo.replace("/", "--")), str(config.HF_DATASETS_CACHE))
    return any(os.path.realpath(home).startswith(os.path.realpath(folder) + os.sep) for folder in own)


def _uri(path: str | None, row: int) -> str:
    """The name of a row's file inside the data set, never where the cache keeps it."""
    name = _BEFORE_NAME.sub("", (path or "").split("::")[0], count=1)
    name = os.path.basename(name) if os.path.isabs(name) else name
    return printable(name) or f"row {row}"


def _builder(spec: str) -> tuple[Any, str, str]:
    """The library's builder of a data set, the repository's name, and which of its splits is meant."""
    import datasets
    from datasets import config as settings

    parts = _SPEC.fullmatch(spec)
    if parts is None:
        raise DataError(
            f"{printable(spec)!r} does not name a data set of the Hub. Write {FORM}, such as hf:uoft-cs/cifar10:test."
        )
    settings.HF_UPDATE_DOWNLOAD_COUNTS = False  # it would tell a host that nobody asked for
    repo, config, split = "/".join(parts[1].split("/")[:2]), parts["config"], parts["split"]
    where = f"hf://datasets/{repo}"  # never a local folder of that name
    try:
        builder = datasets.load_dataset_builder(where, config)
    except ValueError:
        configs = sorted(datasets.get_dataset_config_names(where))
        if config in configs or (config is None and len(configs) < 2):
            raise
        raise DataError(
            f"{printable(spec)}: this data set has {_listed(configs)}. Write one of them as "
            f"hf:{repo}/{printable(configs[0])}."
        ) from None
    splits = list(map(str, builder.config.data_files or builder.info.splits or ()))
    if split is None:
        split = splits[0] if len(splits) == 1 else "train"
    if split not in splits:
        raise DataError(
            f"{printable(spec)}: there is no split {split!r}. This data set has {_listed(splits)}; write one of them "
            f"as hf:{'/'.join(filter(None, (repo, config)))}:{printable((splits or ['train'])[0])}."
        )
    return builder, repo, split


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(map(printable, names[:20])) + more


def _columns(spec: str, features: Any) -> tuple[str, str | None, tuple[str, ...]]:
    """Which columns hold the picture and the class, and the names of the classes where they are listed."""
    import datasets

    features = features or {}
    pictures = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if not pictures:
        raise DataError(
            f"{printable(spec)} has no column of pictures. Its columns are {_listed(list(features)) or 'unknown'}; "
            "choose a data set of images."
        )
    listed = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    label = next((name for name in ("label", *listed, "cls") if name in features), None)
    names = tuple(features[label].names or ()) if label in listed else ()
    return "image" if "image" in pictures else pictures[0], label, tuple(map(printable, names))


@contextmanager
def _in_plain_words(spec: str) -> Iterator[None]:
    """Turn whatever the library raises into one sentence."""
    try:
        yield
    except DataError:
        raise
    except ImportError:
        raise DataError("hf: needs the library datasets. Install it with: pip install datasets.") from None
    except Exception as problem:  # the library, the network, hostile files
        raise DataError(f"{printable(spec)}: {_reason(problem)}") from None


def _reason(problem: BaseException) -> str:
    from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

    chain = [problem]
    while following := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(following)

    def met(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in chain)

    if met(GatedRepoError) or (met(DatasetNotFoundError) and "gated" in str(problem)):
        return "its owner gives access on request. Accept the licence on its page at the Hub, then set HF_TOKEN."
    if met(ConnectionError, TimeoutError, LocalEntryNotFoundError) or any(
        type(link).__module__.startswith("httpx") for link in chain
    ):
        if HF_HUB_OFFLINE:
            return "it is not in the cache, and HF_HUB_OFFLINE forbids the network. Unset it to download the data set."
        return "the Hub cannot be reached and the data set is not in the cache. Check the connection and try again."
    if met(DatasetNotFoundError):
        return "there is no such data set on the Hub, or it is private. Check the name, or set HF_TOKEN."
    if met(DataFilesNotFoundError) or "scripts" in str(problem):
        return "no files that can be read without running code. Choose a data set of Parquet, picture or tar files."
    return "its files cannot be read. Check that its page at the Hub shows them, and that the disk has space."
