"""Embeddings of a collection: complete, resumed after a kill, shared between processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from memssl_core.bundle import embed as embedding
from memssl_core.bundle.embed import embed_collection
from memssl_core.data.images import Transform
from memssl_core.data.streams import open_stream
from memssl_core.errors import DataError
from memssl_core.model.backbone import create_backbone, embed

DATA, MANY = "drawn:5:50:32", "drawn:5:300:32"
TRANSFORM = Transform(32, 32)


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return create_backbone("vit_tiny_patch16_224", depth=1, embed_dim=24, num_heads=2, img_size=32).eval()


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(embedding, "PART", 8)


def table(folder: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("part-*.parquet")))


def test_every_picture_has_its_embedding(backbone, tmp_path):
    assert embed_collection(backbone, TRANSFORM, open_stream(DATA), tmp_path / "e", model_hash="m") == tmp_path / "e"
    rows = table(tmp_path / "e")
    assert rows["image_id"].to_pylist() == list(range(50))
    (item,) = [item for item in open_stream(DATA).items() if item.image_id == 33]
    with torch.inference_mode():
        expected = embed(backbone, TRANSFORM(item.read())[None])[0]
    np.testing.assert_allclose(rows["embedding"][33].as_py(), expected, atol=1e-5)
    assert rows["class_name"][33].as_py() == item.class_name and rows["uri"][33].as_py() == item.uri


def test_parts_of_two_processes_hold_what_one_would(backbone, tmp_path, monkeypatch):
    embed_collection(backbone, TRANSFORM, open_stream(DATA), tmp_path / "one", model_hash="m")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        embed_collection(backbone, TRANSFORM, open_stream(DATA), tmp_path / "two", model_hash="m", kind="npy")
    one, two = table(tmp_path / "one"), table(tmp_path / "two")
    assert sorted(two["image_id"].to_pylist()) == one["image_id"].to_pylist()
    arrays = [np.load(path) for path in sorted((tmp_path / "two").glob("*.npy"))]
    ordered = np.concatenate(arrays)[np.argsort(two["image_id"].to_numpy())]
    np.testing.assert_allclose(ordered, np.stack(one["embedding"].to_pylist()), atol=1e-5)


def test_it_goes_on_where_it_was_stopped(backbone, tmp_path, monkeypatch):
    seen = []

    def emit(event, *, step, **facts):
        seen.append(step)

    asked = lambda: len(seen) >= 3
    told = {"model_hash": "m", "emit": emit}
    assert embed_collection(backbone, TRANSFORM, open_stream(DATA), tmp_path, should_stop=asked, **told) is None
    done = {path: path.read_bytes() for path in tmp_path.glob("part-*.parquet")}
    assert len(done) == 2
    seen.clear()
    assert embed_collection(backbone, TRANSFORM, open_stream(DATA), tmp_path, **told)
    assert min(seen) > 2 * 8  # no part was embedded again
    assert all(path.read_bytes() == content for path, content in done.items())
    assert table(tmp_path)["image_id"].to_pylist() == list(range(50))


def test_another_model_transform_or_collection_is_refused(backbone, tmp_path):
    def run(spec="drawn:5:3:32", transform=TRANSFORM, model_hash="m"):
        return embed_collection(backbone, transform, open_stream(spec), tmp_path / "e", model_hash=model_hash)

    run()
    before = {path: path.read_bytes() for path in (tmp_path / "e").iterdir()}
    for words, other in (
        ("model hash m, not n", {"model_hash": "n"}),
        ("e holds embeddings with transform", {"transform": Transform(40, 32)}),
        ("data drawn:5:3:32, not drawn:5:4:32", {"spec": "drawn:5:4:32"}),
    ):
        with pytest.raises(DataError, match=words):
            run(**other)
    assert {path: path.read_bytes() for path in (tmp_path / "e").iterdir()} == before


def test_a_folder_of_something_else_is_left_alone(backbone, tmp_path):
    for name, words in (("letter.txt", "is not empty"), ("meta.json", "cannot be read")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("[1]")
        with pytest.raises(DataError, match=words):
            embed_collection(backbone, TRANSFORM, open_stream(DATA), folder, model_hash="m")
        assert [path.name for path in folder.iterdir()] == [name]


def test_processes_may_begin_a_folder_at_once(tmp_path):
    def begin(number):
        for round_ in range(40):
            folder = tmp_path / str(round_)
            folder.mkdir(exist_ok=True)
            barrier.wait()
            embedding._claim(folder, {"model_hash": "m"})
            (folder / f"part-{number}").touch()

    barrier = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(begin, range(4)))


def in_process(backbone, spec: str, out: Path, **environment: str):
    """A process of its own that embeds a collection into `out`."""

    def work():
        torch.set_num_threads(1)
        os.environ.update(environment)
        embed_collection(backbone, TRANSFORM, open_stream(spec), out, model_hash="m")

    process = get_context("fork").Process(target=work)
    process.start()
    return process


def test_a_killed_process_loses_at_most_its_last_part(backbone, tmp_path):
    first = in_process(backbone, MANY, tmp_path)
    end = time.monotonic() + 60
    while not (written := [*tmp_path.glob("*.parquet")]) and first.is_alive() and time.monotonic() < end:
        time.sleep(0.001)
    first.kill()
    first.join()
    written = [*tmp_path.glob("*.parquet")]
    assert first.exitcode == -signal.SIGKILL and 0 < len(written) < 38
    (tmp_path / "part-0000-000037.parquet.1a2b.tmp").write_bytes(b"half")
    stamps = {path: path.stat().st_mtime_ns for path in written}
    second = in_process(backbone, MANY, tmp_path)
    second.join(60)
    assert second.exitcode == 0
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert table(tmp_path)["image_id"].to_pylist() == list(range(300))
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".parquet"}


def test_two_real_processes_leave_what_one_would(backbone, tmp_path):
    both = [in_process(backbone, DATA, tmp_path / "two", RANK=rank, WORLD_SIZE="2") for rank in "01"]
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    assert sorted(table(tmp_path / "two")["image_id"].to_pylist()) == list(range(50))
