"""Data sets of a Hub on this machine, asked by a process of its own: the library reads its settings once."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.painting import colour, encoded

from memssl_core.data.datasets import open_images
from memssl_core.data.streams import open_stream
from memssl_core.errors import DataError

SHA = "5" * 40
ROOT = Path(__file__).parents[2]
PICTURE = {"_type": "Image"}
INTEGER = {"_type": "Value", "dtype": "int64"}
CLASSES = {"_type": "ClassLabel", "names": ["oak", "ant"]}  # not in the order of the alphabet


class Handler(BaseHTTPRequestHandler):
    """The few answers of the Hub that `datasets` asks for."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms
    repos: dict[str, dict[str, bytes]]

    def do_GET(self) -> None:
        self.content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, body, headers = self.answer(unquote(urlsplit(self.path).path).strip("/").split("/"))
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, path: list[str]) -> tuple[int, bytes, dict[str, str]]:
        if path[:2] == ["api", "datasets"]:
            path = path[2:]
        elif path[0] == "datasets" and path[3:4] == ["resolve"]:
            path = [*path[1:3], "resolve", *path[5:]]
        else:
            return 404, b"", {}
        repo, (verb, *rest) = "/".join(path[:2]), path[2:] or ["info"]
        if repo.startswith("gated/"):
            return 401, b"", {"X-Error-Code": "GatedRepo"}
        if (files := self.repos.get(repo)) is None:
            return 401, b"", {"X-Error-Code": "RepoNotFound"}
        if verb == "resolve":
            return self.file(files.get("/".join(rest)))
        if verb == "paths-info":
            entries = [entry for name in parse_qs(self.content.decode())["paths"] for entry in tree(files, name)]
        elif verb == "tree":
            within, deep = "/".join(rest[1:]), "recursive=true" in self.path.lower()
            above = within + "/" if within else ""
            names = {name for name in [*files, *folders(files)] if name.startswith(above) and name != within}
            names = {name for name in names if deep or "/" not in name.removeprefix(above)}
            entries = [entry for name in sorted(names) for entry in tree(files, name)]
        else:
            siblings = [{"rfilename": name} for name in files]
            entries = {"id": repo, "sha": SHA, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
        return 200, json.dumps(entries).encode(), {"Content-Type": "application/json"}

    def file(self, content: bytes | None) -> tuple[int, bytes, dict[str, str]]:
        headers = {"X-Repo-Commit": SHA}
        if content is None:
            return 404, b"", {**headers, "X-Error-Code": "EntryNotFound"}
        headers |= {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        if self.command == "GET" and (asked := self.headers.get("Range")):
            first, last = asked.removeprefix("bytes=").split("-")
            part = content[int(first) : int(last or len(content)) + 1]
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
            return 206, part, headers
        return 200, content, headers


def folders(files: dict[str, bytes]) -> set[str]:
    return {name.rsplit("/", depth)[0] for name in files for depth in range(1, name.count("/") + 1)}


def tree(files: dict[str, bytes], name: str) -> list[dict[str, Any]]:
    if name in files:
        oid = hashlib.sha1(files[name]).hexdigest()
        return [{"type": "file", "oid": oid, "size": len(files[name]), "path": name}]
    return [{"type": "directory", "oid": "0" * 40, "size": 0, "path": name}] if name in folders(files) else []


def table(rows: list[dict[str, Any]], features: dict[str, Any], *, group: int = 2) -> bytes:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {name: [row.get(name) for row in rows] for name in features}
    arrays = {name: pa.array(cells, kind if name == "image" else pa.int64()) for name, cells in columns.items()}
    file = io.BytesIO()
    note = json.dumps({"info": {"features": features}})
    rows_ = pa.table(arrays).replace_schema_metadata({"huggingface": note})
    with pq.ParquetWriter(file, rows_.schema) as writer:
        if rows:  # an empty file has no row group
            writer.write_table(rows_, row_group_size=group)
    return file.getvalue()


def pictures(*numbers: int) -> bytes:
    rows = [{"image": {"bytes": encoded(i), "path": f"p{i}.png"}, "label": i % 3 - 1} for i in numbers]
    return table(rows, {"image": PICTURE, "label": CLASSES})


def packed(kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            for number in range(3):
                archive.writestr(f"{number}.png", encoded(number))
        return file.getvalue()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number in range(3):
            for suffix, data in (("png", encoded(number)), ("cls", str(number + 4).encode())):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def configs(**splits: dict[str, str]) -> bytes:
    """A README that says which files make which split of which configuration."""
    told = [
        {"config_name": name, "data_files": [{"split": split, "path": path} for split, path in paths.items()]}
        for name, paths in splits.items()
    ]
    return f"---\nconfigs: {json.dumps(told)}\n---\n".encode()


def repositories(folder: Path) -> dict[str, dict[str, bytes]]:
    outside = [
        str(folder / "private.png"),
        f"file://{folder}/private.png",
        f"hf://datasets/me/folders@{SHA}/train/ant/0.png",
        f"hf://datasets/me/hostile@{SHA}/../folders/train/ant/0.png",
        "http://127.0.0.1/0.png",
        f"zip://0.png::{folder}/private.zip",
        f"simplecache://x::hf://datasets/me/hostile@{SHA}/x.png",
    ]
    cells = [{"bytes": None, "path": path} for path in outside] + [None, {"bytes": b"junk", "path": "\x1b.png"}]
    numbered = [{"image": {"bytes": encoded(i)}, "label": i + 4} for i in range(3)]
    (folder / "private.png").write_bytes(encoded(0))
    (folder / "private.zip").write_bytes(packed("zip"))
    (folder / "private.parquet").write_bytes(pictures(0))
    return {
        "me/tables": {
            "data/train-00000-of-00003.parquet": pictures(0, 1, 2, 3, 4),
            "data/train-00001-of-00003.parquet": pictures(),
            "data/train-00002-of-00003.parquet": pictures(5, 6, 7),
            "data/test-00000-of-00001.parquet": pictures(8, 9),
        },
        "me/folders": {f"train/{name}/{i}.png": encoded(i) for name in ("oak", "ant") for i in range(2)},
        "me/zipped": {"train.zip": packed("zip")},
        "me/shards": {"train-0.tar": packed("tar")},
        "me/numbers": {
            "README.md": b"---\ndataset_info: {splits: [{name: train, num_bytes: 1, num_examples: 3}]}\n---\n",
            "train.parquet": table(numbered, {"image": PICTURE, "label": INTEGER}),
        },
        "me/two": {
            "README.md": configs(small={"train": "a.parquet"}, large={"one": "b.parquet", "two": "b.parquet"}),
            "a.parquet": pictures(1),
            "b.parquet": pictures(2, 3),
        },
        "me/hostile": {"train.parquet": table([{"image": cell} for cell in cells], {"image": PICTURE})},
        "me/elsewhere": {
            "README.md": configs(default={"train": f"{folder}/private.parquet"}),
            "x.parquet": pictures(0),
        },
        "me/script": {"script.py": b"raise SystemExit", "README.md": b""},
        "me/text": {"train.jsonl": b'{"text": "no picture"}\n'},
        "me/nothing": {"data.bin": b"0"},
        "me/damaged": {"train.parquet": b"PAR1 not really PAR1"},
    }


CLIENT = """
import json, pickle, socket, sys, time
lookup, hosts = socket.getaddrinfo, set()

def lookup_here(host, *how, **more):
    hosts.add(host)
    if host != "127.0.0.1":
        raise socket.gaierror("no network in tests")
    return lookup(host, *how, **more)

socket.getaddrinfo = lookup_here
import huggingface_hub.utils._http as http
http.time = type("Patient", (), {**vars(time), "sleep": staticmethod(lambda s: None)})  # its five waits, 23 s in all
from memssl_core.data.datasets import open_images
from memssl_core.data.streams import open_stream

def seen(read):
    try:
        return list(read().getpixel((0, 0)))
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}"

def stream(spec):
    opened = open_stream(spec)
    told = [[i.image_id, i.uri, i.label, i.class_name, seen(i.read)] for i in opened.items()]
    return {"items": told, "count": opened.count, "class_names": opened.class_names}

def parts(spec):
    opened = pickle.loads(pickle.dumps(open_stream(spec)))
    return [[[i.image_id for i in opened.items(part, n)] for part in range(n)] for n in (2, 3, 9)]

def images(spec):
    opened = pickle.loads(pickle.dumps(open_images(spec)))
    told = [[i, opened.uris[i], opened.label(i), opened.class_name(i), seen(lambda: opened.read(i))]
            for i in range(len(opened))]
    return {"items": told, "class_names": opened.class_names}

def answer(door, spec):
    try:
        return globals()[door](spec)
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}"

answers = [answer(*question) for question in json.load(sys.stdin)]
print(json.dumps({"answers": answers, "hosts": sorted(hosts)}))
"""
Answers = dict[tuple[str, str], Any]


def ask(questions: list[tuple[str, str]], cache: Path, **settings: str) -> Answers:
    """What each (door, spec) answers in a process of its own, in this order."""
    dropped = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_TOKEN", "HF_ENDPOINT")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= {"HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT), **settings}
    run = subprocess.run(
        [sys.executable, "-c", CLIENT], input=json.dumps(questions), env=environment, cwd=cache.parent, text=True,
        capture_output=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout.splitlines()[-1])
    return {**dict(zip(questions, told["answers"], strict=True)), ("hosts", ""): told["hosts"]}


PARTED = ["hf:me/tables", "hf:me/folders", "hf:me/folders+hf:me/tables:test"]
READABLE = ["me/tables", "me/folders", "me/zipped", "me/shards", "me/numbers", "me/two/small", "me/two/large:two"]
REFUSED = {
    "me/none": "there is no such data set on the Hub, or it is private. Check the name, or set HF_TOKEN.",
    "gated/set": "its owner gives access on request. Accept the licence on its page at the Hub, then set HF_TOKEN.",
    "me/tables:val": "there is no split 'val'. This data set has train, test; write one of them as hf:me/tables:train.",
    "me/two": "this data set has large, small. Write one of them as hf:me/two/large.",
    "me/two/tiny": "this data set has large, small. Write one of them as hf:me/two/large.",
    "me/two/large": "there is no split 'train'. This data set has one, two; write one of them as hf:me/two/large:one.",
    "me/elsewhere": "its files cannot be read. Check that its page at the Hub shows them, and that the disk has space.",
    "me/script": "no files that can be read without running code. Choose a data set of Parquet, picture or tar files.",
    "me/nothing": "no files that can be read without running code. Choose a data set of Parquet, picture or tar files.",
    "me/text": "has no column of pictures. Its columns are text; choose a data set of images.",
    "me/damaged": "its files cannot be read. Check that its page at the Hub shows them, and that the disk has space.",
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("hub")
    (folder / "me" / "none").mkdir(parents=True)  # a folder beside the client, named like a data set
    (folder / "me" / "none" / "train.parquet").write_bytes(pictures(0))
    handler = type("Served", (Handler,), {"repos": repositories(folder)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
    joined = ["me/folders+hf:me/tables:test", "me/shards+drawn:1:2:16"]
    specs = [f"hf:{name}" for name in (*READABLE, *joined, *REFUSED, "me/hostile")]
    questions = [("stream", spec) for spec in specs] + [("parts", spec) for spec in PARTED]
    questions += [("images", spec) for spec in specs]  # last: a stream reads what has been downloaded
    online = ask(questions, folder / "cache", **endpoint)
    server.shutdown()
    server.server_close()
    again = [("stream", "hf:me/tables"), ("parts", "hf:me/tables"), ("images", "hf:me/folders"), ("images", "hf:me/x")]
    yield {
        "online": online,
        "offline": ask(again, folder / "cache", HF_HUB_OFFLINE="1"),
        "unreachable": ask(again, folder / "cache", **endpoint),
    }


def rows(found: dict[str, Any]) -> list[tuple]:
    return [tuple(row) for row in found["items"]]


def expected(*numbers: int) -> list[tuple]:
    """Of a table of `pictures`."""
    labels = [None if i % 3 == 0 else i % 3 - 1 for i in numbers]
    names = [None if label is None else CLASSES["names"][label] for label in labels]
    return [(row, f"p{i}.png", labels[row], names[row], list(colour(i))) for row, i in enumerate(numbers)]


@pytest.mark.parametrize("door", ["stream", "images"])
def test_tables_of_the_hub_are_read_in_row_order(hub, door: str):
    found = hub["online"][door, "hf:me/tables"]
    assert rows(found) == expected(0, 1, 2, 3, 4, 5, 6, 7)
    assert found["class_names"] == ["oak", "ant"]
    assert rows(hub["online"][door, "hf:me/two/small"]) == expected(1)
    assert rows(hub["online"][door, "hf:me/two/large:two"]) == expected(2, 3)


@pytest.mark.parametrize("door", ["stream", "images"])
def test_picture_files_of_the_hub_have_their_folders_as_classes(hub, door: str):
    found = rows(hub["online"][door, "hf:me/folders"])
    named = [(name, i) for name in ("ant", "oak") for i in range(2)]
    assert found == [
        (row, f"train/{name}/{i}.png", ["ant", "oak"].index(name), name, list(colour(i)))
        for row, (name, i) in enumerate(named)
    ]
    assert [row[1:] for row in rows(hub["online"][door, "hf:me/zipped"])] == [
        (f"{i}.png", None, None, list(colour(i))) for i in range(3)
    ]


@pytest.mark.parametrize("spec", [f"hf:{name}" for name in READABLE])
def test_a_stream_has_the_ids_names_and_pictures_of_the_list(hub, spec: str):
    streamed, listed = hub["online"]["stream", spec], hub["online"]["images", spec]
    assert [(i, uri, name, seen) for i, uri, _, name, seen in rows(streamed)] == [
        (i, uri, name, seen) for i, uri, _, name, seen in rows(listed)
    ]
    if streamed["class_names"] is not None:
        assert streamed["class_names"] == listed["class_names"] and rows(streamed) == rows(listed)


def test_labels_without_names_stay_what_they_are_in_a_stream(hub):
    for spec in ("hf:me/shards", "hf:me/numbers"):
        streamed, listed = hub["online"]["stream", spec], hub["online"]["images", spec]
        assert [row[2:4] for row in rows(streamed)] == [(4, "4"), (5, "5"), (6, "6")]
        assert [row[2:4] for row in rows(listed)] == [(0, "4"), (1, "5"), (2, "6")]


def test_a_stream_counts_what_the_hub_declares(hub):
    counts = {name: hub["online"]["stream", f"hf:{name}"]["count"] for name in ("me/numbers", "me/tables")}
    assert counts == {"me/numbers": 3, "me/tables": None}


@pytest.mark.parametrize("spec", ["hf:me/folders+hf:me/tables:test", "hf:me/shards+drawn:1:2:16"])
def test_joined_sets_have_the_ids_and_classes_of_the_list(hub, spec: str):
    streamed, listed = hub["online"]["stream", spec], hub["online"]["images", spec]
    assert [row[:2] + row[3:] for row in rows(streamed)] == [row[:2] + row[3:] for row in rows(listed)]
    if streamed["class_names"] is not None:
        assert rows(streamed) == rows(listed)
    else:
        assert {row[2] for row in rows(streamed)} == {None}


@pytest.mark.parametrize("spec", PARTED)
def test_parts_of_a_hub_stream_are_disjoint_and_complete(hub, spec: str):
    ids = [row[0] for row in rows(hub["online"]["stream", spec])]
    for cut in hub["online"]["parts", spec]:
        assert sorted(i for part in cut for i in part) == ids
    if spec == "hf:me/tables":  # of Parquet files: neighbours, cut evenly
        assert hub["online"]["parts", spec][:2] == [[[0, 1, 2, 3], [4, 5, 6, 7]], [[0, 1], [2, 3, 4], [5, 6, 7]]]


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("door", ["stream", "images"])
def test_what_cannot_be_opened_gets_a_sentence(hub, door: str, name: str):
    text = hub["online"][door, f"hf:{name}"]
    assert text.startswith(f"DataError: hf:{name}") and text.endswith(REFUSED[name])


@pytest.mark.parametrize("door", ["stream", "images"])
def test_rows_that_name_other_files_are_not_followed(hub, door: str):
    found = rows(hub["online"][door, "hf:me/hostile"])
    assert [seen.split(": ", 2)[2] for *_, seen in found[:7]] == [
        "This row names a file outside its data set, which is not opened."
    ] * 7
    assert "row 7: This row holds no picture" in found[7][4] and "\\x1b.png: This is not a picture" in found[8][4]
    assert all(str(ROOT) not in uri and "/tmp/" not in uri for _, uri, *_ in found if "://" not in uri)


@pytest.mark.parametrize("network", ["offline", "unreachable"])
def test_what_was_downloaded_is_read_without_network(hub, network: str):
    tables, parts, folders_, absent, _ = hub[network].values()
    assert rows(tables) == expected(*range(8)) and tables["count"] == 8
    assert parts == hub["online"]["parts", "hf:me/tables"]
    assert rows(folders_) == rows(hub["online"]["images", "hf:me/folders"])
    reason = "HF_HUB_OFFLINE forbids the network" if network == "offline" else "the Hub cannot be reached"
    assert absent.startswith("DataError: hf:me/x: ") and reason in absent


def test_no_other_host_is_asked(hub):
    assert set(hub["online"]["hosts", ""]) == {"127.0.0.1", "datasets-server.127.0.0.1"}  # the Hub's own viewer
    assert hub["offline"]["hosts", ""] == []


@pytest.mark.parametrize("name", ["", "../up", "me/x/y/z", "a b", "me/x:", "/etc", "me/..", "x:y:z"])
def test_names_that_are_none_are_shown_the_form(name: str):
    with pytest.raises(DataError) as caught:
        open_images(f"hf:{name}")
    assert "hf:OWNER/NAME[/CONFIG][:SPLIT]" in str(caught.value)


@pytest.mark.parametrize("door", [open_images, open_stream])
def test_the_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, door):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="needs the library datasets. Install it with: pip install datasets"):
        door("hf:me/tables")
