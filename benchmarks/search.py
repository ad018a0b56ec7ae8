"""How fast is search in a very large gallery, how much is missed, and what does the gallery take?

python benchmarks/search.py [--rows N] [--width C] [--keep DIR]: a gallery of generated embeddings (20 000 clusters that
overlap, so that one list of the index is not enough; fixed seeds) is built by the code that embeds photographs, with
thumbnails of 5 kB. The process is killed with SIGKILL on the way and started again; embeddings that were made twice
are counted. Then come queries that are not in the gallery, one at a time, against exact search.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import torch
import tyro
from PIL import Image
from timing import machine

from analysis.collect import Looks
from analysis.gallery import Gallery, open_gallery
from analysis.index import Ivf, nearest
from analysis.pictures import LISTED, Listing, content_of
from analysis.search import search
from analysis.update import Encoder, update_gallery
from memssl_core.bundle.embed import Embedded
from memssl_core.data.streams import Item

NAME = "benchmark"
CLUSTERS, LATENT, SPREAD, AMBIENT = 20_000, 32, 0.6, 0.05
"""middles are normal in LATENT dimensions, rows about them with SPREAD, and AMBIENT in all of the embedding's"""
CHUNK = 4_096
THUMBNAIL_BYTES = 5_000
BATCH = 256


@dataclass(frozen=True)
class Setting:
    rows: int = 1_000_000
    width: int = 384
    queries: int = 300
    k: int = 10
    kill_at: float = 0.4
    """share of the rows embedded when the process is killed"""
    keep: Path | None = None
    """a folder for the gallery that stays; a temporary one is removed"""
    build: bool = False
    """used by the script itself: only build, in $MEMSSL_HOME"""


@lru_cache(1)
def world(width: int) -> tuple[np.ndarray, np.ndarray]:
    """Middles [CLUSTERS, LATENT], and orthonormal directions [LATENT, width]."""
    rng = np.random.default_rng(0)
    middles = rng.standard_normal((CLUSTERS, LATENT), np.float32)
    return middles, np.linalg.qr(rng.standard_normal((width, LATENT)))[0].T.astype(np.float32)


@lru_cache(1)
def rows_of(stream: int, chunk: int, width: int) -> np.ndarray:
    """float32 [CHUNK, width]; stream 1 is the gallery, stream 2 the queries."""
    middles, directions = world(width)
    rng = np.random.default_rng([stream, chunk])
    latent = middles[rng.integers(0, CLUSTERS, CHUNK)] + SPREAD * rng.standard_normal((CHUNK, LATENT), np.float32)
    return latent @ directions + AMBIENT * rng.standard_normal((CHUNK, width), np.float32)


class Generated:
    """Pictures that nobody draws: only their embeddings are made."""

    def __init__(self, count: int) -> None:
        self.count = count

    def listing(self) -> Listing:
        numbers = np.arange(self.count)
        paths = pa.array([f"{number // 1000:05d}/{number:08d}.jpg" for number in range(self.count)])
        columns = [numbers, paths, np.full(self.count, 2_000_000), numbers, pa.nulls(self.count, pa.string())]
        return Listing(pa.table(dict(zip(LISTED.names, columns, strict=True)), schema=LISTED), [])

    def content(self, at: int) -> str:
        return content_of(str(at).encode())

    def read(self, at: int, content: str) -> Image.Image:
        raise NotImplementedError

    def named(self, path: str, content: str) -> Image.Image:
        raise NotImplementedError


def embedder(setting: Setting, log: Path) -> Any:
    """Writes to `log` how many rows it has made, before they are handed over."""
    noise = np.random.default_rng(3).bytes(4 * THUMBNAIL_BYTES)

    def embed(items: Iterable[Item]) -> Iterator[Embedded[Looks]]:
        waiting = iter(items)
        while batch := [*islice(waiting, BATCH)]:
            chunks = [rows_of(1, item.image_id // CHUNK, setting.width)[item.image_id % CHUNK] for item in batch]
            looks = [(1024, 768, noise[item.image_id % 9_999 :][:THUMBNAIL_BYTES]) for item in batch]
            with log.open("a") as file:
                file.write(f"{len(batch)}\n")
            yield Embedded(batch, torch.from_numpy(np.stack(chunks)), looks, [])

    return embed


class Peak:
    """The most main memory of this process while it is entered: its own, without the pages of mapped files."""

    def __enter__(self) -> Peak:
        self.bytes, self._over = 0, threading.Event()
        self._sampler = threading.Thread(target=self._sample)
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._sampler.join()

    def _sample(self) -> None:
        process = psutil.Process()
        while not self._over.wait(0.02):
            told = process.memory_info()
            self.bytes = max(self.bytes, told.rss - getattr(told, "shared", 0))


def build(setting: Setting) -> None:
    """One run; prints seconds a phase and the peak of memory as JSON."""
    home = Path(os.environ["MEMSSL_HOME"])
    encoder = Encoder("benchmark", "0", {}, setting.width, embedder(setting, home / "embedded"))
    phases: dict[str, float] = {}
    shown = 0.0

    def emit(event: str, *, step: int, total: int | None, words: str) -> None:
        nonlocal shown
        now = time.monotonic()
        if words not in phases or now - shown > 10:
            print(f"  {words}: {step:,} of {total or 0:,}", file=sys.stderr, flush=True)
            shown = now
        phases.setdefault(words, now)

    with Peak() as peak:
        began = time.monotonic()
        update_gallery(NAME, "generated", encoder, pictures=Generated(setting.rows), emit=emit)
        marks = {**phases, "": time.monotonic()}
    times = [*marks.values()]
    seconds = {words: end - start for words, start, end in zip(marks, times, times[1:], strict=False)}
    print(json.dumps({"seconds": seconds, "whole_s": times[-1] - began, "peak_bytes": peak.bytes}))


def child(setting: Setting) -> subprocess.Popen[bytes]:
    words = ["--rows", str(setting.rows), "--width", str(setting.width), "--build"]
    return subprocess.Popen([sys.executable, __file__, *words], stdout=subprocess.PIPE)


def embedded_rows(home: Path) -> int:
    log = home / "embedded"
    return sum(map(int, log.read_text().split())) if log.exists() else 0


def built(setting: Setting, home: Path) -> None:
    """Build in a process that is killed on the way, and in another one that goes on."""
    began, first = time.monotonic(), child(setting)
    while first.poll() is None and embedded_rows(home) < setting.kill_at * setting.rows:
        time.sleep(0.05)
    killed_s = time.monotonic() - began
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = embedded_rows(home)
    told = json.loads(child(setting).communicate()[0])
    twice = embedded_rows(home) - setting.rows
    print(f"killed after {before:,} rows, {killed_s:.0f} s; then whole after {told['whole_s']:.0f} s more:", end=" ")
    print(", ".join(f"{words} {seconds:.0f} s" for words, seconds in told["seconds"].items()))
    print(f"embedded twice: {twice} rows (at most a batch of {BATCH} that was made and not yet handed over)")
    print(f"memory of its own at most {told['peak_bytes'] / 2**20:,.0f} MiB; on disk {on_disk(home)}")
    again = json.loads(child(setting).communicate()[0])
    print(f"nothing new: {again['whole_s']:.0f} s, embedded {embedded_rows(home) - setting.rows - twice} rows")


def on_disk(home: Path) -> str:
    sizes: dict[str, int] = {}
    for path in (home / "galleries").rglob("*"):
        if path.is_file():
            kind = "parts" if path.parent.name == "parts" else path.name
            sizes[kind] = sizes.get(kind, 0) + path.stat().st_size
    large = ", ".join(f"{kind} {size / 1e9:.2f} GB" for kind, size in sizes.items() if size > 1e7)
    return f"{sum(sizes.values()) / 1e9:.2f} GB: {large}"


def searched(setting: Setting, opened: Gallery) -> None:
    queries = np.concatenate([rows_of(2, 0, setting.width), rows_of(2, 1, setting.width)])[: setting.queries + 20]
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    warm, asked = queries[:20], queries[20:]
    for query in warm:
        search(opened, query, setting.k)
    with Peak() as peak:
        found = [search(opened, query, setting.k) for query in asked]
        times = np.array([one.time_s for one in found]) * 1e3
    exact_s = [search(opened, query, setting.k, exact=True).time_s for query in asked[:10]]
    truth = nearest(opened.vectors, asked, setting.k)[0]
    median, p95 = np.percentile(times, [50, 95])
    print(
        f"search for {setting.k}, {len(asked)} queries one at a time: p50 {median:.1f} ms, p95 {p95:.1f} ms", end="; "
    )
    print(f"{np.median(exact_s) * 1e3 / median:.0f}x faster than exact ({np.median(exact_s) * 1e3:.0f} ms)")
    print(f"recall@{setting.k} {recall(truth, [one.rows for one in found]):.4f}", end="")
    if opened.index is not None:
        one_probe = Ivf(replace(opened.index.facts, probes=1), opened.index.index)
        alone = recall(truth, one_probe.nearest(opened.vectors, asked, setting.k)[0])
        print(f" (with one probe {alone:.4f}); {asdict(opened.index.facts)}", end="")
    print(f"\nmemory of its own while searching at most {peak.bytes / 2**20:,.0f} MiB")


def recall(truth: np.ndarray, found: Any) -> float:
    return float(np.mean([np.isin(right, rows).mean() for right, rows in zip(truth, found, strict=True)]))


def main(setting: Setting) -> None:
    if setting.build:
        return build(setting)
    print(f"{setting.rows:,} rows of {setting.width} in {CLUSTERS:,} clusters ({machine()})")
    with tempfile.TemporaryDirectory() as folder:
        home = setting.keep or Path(folder)
        home.mkdir(parents=True, exist_ok=True)
        os.environ["MEMSSL_HOME"] = str(home)
        built(setting, home)
        began = time.monotonic()
        opened = open_gallery(NAME)
        print(f"opened in {time.monotonic() - began:.2f} s")
        searched(setting, opened)


if __name__ == "__main__":
    main(tyro.cli(Setting, description=__doc__))
