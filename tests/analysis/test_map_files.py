"""Map files of strangers, the command and its job, and the page of a map."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bundle.making import NOISE_SLOTS, SLOTS, small_bundle, small_memory, thumbnail
from hypothesis import given
from hypothesis import strategies as st

from analysis import cli
from analysis import map as maps
from analysis.figure import map_html
from analysis.map import fit_map, map_clusters, stored_map
from memssl_core import paths
from memssl_core.bundle.maps import MAX_PARAMETERS_BYTES, read_map, save_map
from memssl_core.errors import BundleError, ModelError
from memssl_core.jobs import JobFolder, read_events, start
from memssl_core.sources import open_model

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = SLOTS - NOISE_SLOTS
SETTINGS = {"method": "umap", "seed": None, "min_dist": 0.1, "clustering": "none", "versions": {}, "fit_s": 1}


@pytest.fixture
def bundle_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMSSL_HOME", str(tmp_path / "home"))
    small_bundle().save(tmp_path / "b")
    return tmp_path / "b"


# --- files


def a_map(bundle_folder):
    model = open_model(str(bundle_folder))
    return model, maps.MemoryMap(
        np.arange(WRITTEN),
        np.random.default_rng(0).normal(size=(WRITTEN, 2)).astype(np.float32),
        np.arange(WRITTEN, dtype=np.int32) % 3 - 1,
        {"bundle_hash": model.card["bundle_hash"], "space": "memory"} | SETTINGS,
    )


def test_a_written_map_reads_the_same(bundle_folder):
    model, made = a_map(bundle_folder)
    save_map(bundle_folder / "map.parquet", made)
    found = stored_map(model)
    for name in ("slot", "xy", "cluster"):
        np.testing.assert_array_equal(getattr(found, name), getattr(made, name))
        assert getattr(found, name).dtype == getattr(made, name).dtype
    assert found.parameters == made.parameters


def write(path, columns, parameters):
    told = parameters if isinstance(parameters, bytes) else json.dumps(parameters).encode()
    pq.write_table(pa.table(columns).replace_schema_metadata({"memssl": told}), path)


def change(name, at, value):
    def changed(columns, parameters):
        columns[name][at] = value

    return changed


HOSTILE = {
    "coordinates that are not finite": change("x", 3, np.nan),
    "is not finite": change("y", 3, np.inf),
    "every written slot once": change("slot", 3, 2),
    "once and in order": change("slot", 3, SLOTS + 5),
    "in order": change("slot", 0, -1),
    "cluster numbers that are not between -1 and 254": change("cluster", 0, 255),
    "not between": change("cluster", 0, -2),
    "has other columns": lambda columns, parameters: columns.pop("y"),
    "other types": lambda columns, parameters: columns.update(x=columns["x"].astype(np.float64)),
    "than slot, x, y, cluster": lambda columns, parameters: columns.update(z=columns["x"]),
    f"has {WRITTEN - 1} rows for {WRITTEN}": lambda columns, parameters: [
        columns.update({name: column[1:]}) for name, column in columns.items()
    ],
    "lacks numbers": lambda columns, parameters: columns.update(x=pa.array([None, *columns["x"][1:]], pa.float32())),
    f"parameters of more than {MAX_PARAMETERS_BYTES}": lambda columns, parameters: parameters.update(a="x" * 100_000),
    "far too large": lambda columns, parameters: parameters.update(a="x" * 10_000_000),
    "no usable 'seed'": lambda columns, parameters: parameters.update(seed="<b>"),
    "no usable 'trustworthiness'": lambda columns, parameters: parameters.update(trustworthiness=[1]),
    "no usable 'versions'": lambda columns, parameters: parameters.pop("versions"),
}
HOSTILE["are not finite"] = HOSTILE.pop("is not finite")


@pytest.mark.parametrize("sentence", HOSTILE)
def test_a_hostile_map_is_told_in_one_sentence(bundle_folder, sentence):
    model, made = a_map(bundle_folder)
    columns = {"slot": made.slot, "x": made.xy[:, 0].copy(), "y": made.xy[:, 1].copy(), "cluster": made.cluster}
    parameters = dict(made.parameters)
    HOSTILE[sentence](columns, parameters)
    write(bundle_folder / "map.parquet", columns, parameters)
    with pytest.raises(BundleError) as caught:
        stored_map(model)
    told = str(caught.value)
    assert sentence in told and told.startswith("map.parquet") and "python -m analysis map" in told
    assert len(told) < 200 and "\n" not in told


@pytest.mark.parametrize("told", [b"", b"{", b"[1]", b'{"fit_s": NaN}', b"[" * 5000, b"\xff"])
def test_parameters_that_cannot_be_read(bundle_folder, told):
    model, made = a_map(bundle_folder)
    write(bundle_folder / "map.parquet", {"slot": made.slot}, told)
    with pytest.raises(BundleError, match=r"map.parquet (has no readable parameters|is not a readable map)"):
        stored_map(model)


def test_what_is_no_parquet_file(bundle_folder):
    model, made = a_map(bundle_folder)
    save_map(bundle_folder / "map.parquet", made)
    for content in (b"", b"PAR1 no", (bundle_folder / "map.parquet").read_bytes()[:-100]):
        (bundle_folder / "map.parquet").write_bytes(content)
        with pytest.raises(BundleError, match="map.parquet is not a readable map of a memory"):
            stored_map(model)


@given(st.data())
def test_damaged_bytes_never_pass_for_another_kind_of_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("maps") / "map.parquet"
    told = {"bundle_hash": "h", "space": "memory"} | SETTINGS
    made = maps.MemoryMap(
        np.arange(9),
        np.zeros((9, 2), np.float32),
        np.zeros(9, np.int32),
        told,
    )
    save_map(path, made)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        found = read_map(path, np.arange(9), bundle_hash="h", space="memory")
    except BundleError as reason:
        assert "\n" not in str(reason)
    else:
        assert found is None or (found.slot.tolist() == list(range(9)) and np.isfinite(found.xy).all())


def test_a_broken_map_is_fitted_anew(bundle_folder):
    (bundle_folder / "map.parquet").write_bytes(b"no map")
    model = open_model(str(bundle_folder))
    fit_map(model)
    assert len(stored_map(model).slot) == WRITTEN


# --- without the libraries

BARE = """
import sys
for library in ("umap", "numba", "faiss", "fast_hdbscan", "plotly"):
    sys.modules[library] = None
from analysis.map import fit_map, stored_map
from memssl_core.errors import ModelError
from memssl_core.sources import open_model
model = open_model(sys.argv[1])
print(len(stored_map(model).slot), model.memory.uri[3])
try:
    fit_map(model, again=True)
except ModelError as reason:
    print(reason)
"""


def test_a_stored_map_opens_without_umap_and_faiss(bundle_folder):
    model, made = a_map(bundle_folder)
    save_map(bundle_folder / "map.parquet", made)
    ran = subprocess.run(
        [sys.executable, "-c", BARE, str(bundle_folder)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        f"{WRITTEN} drawn:7:20/3",
        "Fitting a map needs faiss-cpu and umap-learn; install it with `pip install faiss-cpu umap-learn`.",
    ]


def test_without_umap_it_says_what_to_install(bundle_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ModelError, match="pip install umap-learn"):
        fit_map(open_model(str(bundle_folder)))
    assert not (bundle_folder / "map.parquet").exists()


# --- the command and the job


@pytest.fixture
def signals():
    """The command takes over SIGINT and SIGTERM of its process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_command(bundle_folder, tmp_path, signals, capsys):
    words = ["map", str(bundle_folder), "--html", str(tmp_path / "m.html"), "--out", str(tmp_path / "m.parquet")]
    assert cli.main(words) == 0
    told = capsys.readouterr()
    assert told.out.startswith(f"{WRITTEN} slots in memory space, ") and "trustworthiness@15: " in told.out
    assert told.err.count("wrote") == 2 and "drawn:7:20" in (tmp_path / "m.html").read_text(encoding="utf-8")
    assert pq.read_table(tmp_path / "m.parquet").column_names == ["slot", "x", "y", "cluster"]
    assert cli.main(["map", str(bundle_folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["slots"] == WRITTEN and found["seed"] == 0 and found["space"] == "memory"
    assert [one["cluster"] for one in found["clusters"]] == list(range(len(found["clusters"])))


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["map", "random:vit_tiny_patch16_224"], "no memory, so it has no map"),
        (["map", "embedded", "--out", "map.csv"], "use one of .parquet"),
        (["map", "embedded", "--html", "map.png"], "use one of .html"),
        (["map", "embedded", "--min-dist", "2"], "min_dist is 2.0"),
        (["map", "embedded", "--seed", "-1"], "seed -1"),
    ],
)
def test_mistakes_are_one_sentence(words, sentence, signals, capsys):
    assert cli.main(words) == 1
    told = capsys.readouterr()
    assert sentence in told.err and told.out == "" and told.err.count("\n") == 1


def test_a_job_tells_how_far_it_is(bundle_folder, tmp_path):
    job = start(["map", str(bundle_folder)], kind="map", title="Map", module="analysis", root=tmp_path / "jobs")
    until = time.monotonic() + 120
    while (job.status() or {}).get("state") in (None, "waiting", "running") and time.monotonic() < until:
        time.sleep(0.1)
    assert job.status()["state"] == "finished", job.log_tail()
    told = [event["words"] for event in read_events(job.events)[0]]
    assert told[0] == "finding neighbours" and "finding clusters" in told and told[-1] == "judging the map"
    assert stored_map(open_model(str(bundle_folder))) is not None


def test_an_interrupt_leaves_nothing(bundle_folder, tmp_path, signals, monkeypatch, capsys):
    find = maps.neighbour_graph

    def interrupted(*args, **how):
        os.kill(os.getpid(), signal.SIGINT)
        return find(*args, **how)

    monkeypatch.setattr(maps, "neighbour_graph", interrupted)
    assert cli.main(["map", str(bundle_folder), "--job", str(tmp_path / "job")]) == 1
    assert "Stopped" in capsys.readouterr().err
    assert JobFolder(tmp_path / "job").status()["state"] == "stopped"
    left = [path.suffix for folder in (bundle_folder, paths.maps_dir()) for path in folder.rglob("*")]
    assert not set(left) & {".tmp", ".npz"} and not (bundle_folder / "map.parquet").exists()


# --- the page


def hostile_model(bundle_folder):
    word, uri = "</script><script>alert(1)</script>", 'x"><img src=x onerror=alert(2)>'
    memory = replace(small_memory(), class_name=[word] * SLOTS, uri=[uri] * SLOTS)
    replace(small_bundle(), memory=memory).save(bundle_folder)
    return open_model(str(bundle_folder)), word, uri


def test_hostile_words_stay_words(bundle_folder):
    model, word, uri = hostile_model(bundle_folder)
    _, made = a_map(bundle_folder)
    made = replace(made, parameters=made.parameters | {"method": word})
    page = map_html(model, made, map_clusters(model, made))
    assert word not in page and uri not in page and "<img src=x" not in page
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in page and page.count("<script") == page.count("</script")


def test_the_page_shows_the_pictures_of_the_slots(bundle_folder, monkeypatch):
    model, made = a_map(bundle_folder)
    page = map_html(model, made, map_clusters(model, made))
    for slot in (0, WRITTEN - 1):
        assert base64.b64encode(thumbnail(slot * 5)).decode() in page
    assert not re.search(r"""<(script|link|img)\b[^>]+(src|href)=["']?http""", page)  # nothing is fetched
    monkeypatch.setattr("analysis.figure.MAX_PICTURES", 10)
    assert "data:image/webp" not in map_html(model, made, map_clusters(model, made))


def test_a_page_without_plotly(bundle_folder, monkeypatch):
    model, made = a_map(bundle_folder)
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(ModelError, match="pip install plotly"):
        map_html(model, made, [])
