"""A new run over HTTP: what is offered, what is refused, what is started, and where nothing of it is there."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser.answers import HERE
from browser.pictures import photo, upload
from browser.run_folders import listed, routes_of, write_run
from fastapi.testclient import TestClient

from memssl_core import jobs, paths
from memssl_core.config import PRESETS, TrainConfig
from memssl_core.data.hub_data import HubRows
from memssl_core.errors import ConfigError
from ui.context import Context, Training
from ui.login import basic
from ui.page import build
from ui.training import config_of, measures_dir

WISH = {"data": {"kind": "drawn", "count": 64}, "preset": "smoke"}
BY_INDEX = ("run/predict", "queue/join", "api/predict")
INSIDE = {"Authorization": "Basic YWRhOnNlY3JldA=="}  # ada:secret
READING = ("train", "train/measure/a", "runs", "runs/a", "runs/a/events", "runs/a/snapshots/0",
           "runs/a/snapshots/0/map?axes=0", "runs/a/snapshots/0/picture/0", "runs/a/snapshots/0/crops")  # fmt: skip
CHANGING = ("train/plan", "train/measure", "train/measure/a/stop", "train/start", "runs/a/stop", "runs/a/save",
            "runs/a/kill", "runs/a/resume", "runs/a/delete", "runs/a/rename")  # fmt: skip


@pytest.fixture
def client(ready: Future, photos: Path) -> TestClient:
    return routes_of(Context("small", ready, roots={"photos": photos}, training=Training()))


def ask(client: TestClient, what: str, **wish: Any) -> dict:
    return client.post(f"/api/train/{what}", json=WISH | wish).json()


def flags(argv: list[str]) -> dict[str, str]:
    return dict(zip(argv[1::2], argv[2::2], strict=True))


# What is offered


def test_every_preset_and_every_simple_setting_is_offered_once(client: TestClient):
    told = client.get("/api/train").json()
    assert {one["name"] for one in told["presets"]} == set(PRESETS)
    for one in told["presets"]:
        assert one["title"] and one["words"] and TrainConfig(**lists_as_tuples(one["config"])) == PRESETS[one["name"]]
    offered = [*told["knobs"], *told["folded"]]
    simple = [field.name for field in fields(TrainConfig) if not str(field.type).startswith("tuple")]
    assert sorted([*(one["name"] for one in offered), "device"]) == sorted(simple)
    kinds = {one["name"]: one["kind"] for one in offered}
    assert (kinds["lr"], kinds["optimizer"], kinds["head_batch_norm"]) == ("number", "choice", "switch")
    assert all(one["why"] for one in told["knobs"]) and any("hub" not in one["why"] for one in told["folded"])
    assert told["roots"] == ["photos"] and told["limits"] is None and told["at_once"] == 1 and told["processes"][0] == 1
    assert told["devices"][0]["value"] == "auto"
    assert {preset.backbone for preset in PRESETS.values()} <= {value for value, _ in choices(offered, "backbone")}


def lists_as_tuples(config: dict) -> dict:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}


def choices(offered: list[dict], name: str) -> list:
    return next(one["choices"] for one in offered if one["name"] == name)


def test_changes_make_the_settings_that_they_name():
    changes = {"steps": None, "epochs": 3, "lr": 1, "backbone": "resnet18", "grey": 0.5, "head_batch_norm": False,
               "optimizer": "sgd", "global_scale": [0.5, 1], "batch_size": 32.0}  # fmt: skip
    made = config_of("smoke", changes)
    assert made == replace(PRESETS["smoke"], **lists_as_tuples(changes) | {"batch_size": 32})
    assert type(made.batch_size) is int and type(made.lr) is float
    for name, preset in PRESETS.items():
        assert config_of(name, json.loads(json.dumps(asdict(preset)))) == preset


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("steps", value) for value in ("60", 1.5, True, [1], 1e12, float("inf"), float("nan"), -1, {})],
        *[("lr", value) for value in ("fast", None, 0, float("nan"), 1e300)],
        *[("head_batch_norm", value) for value in (1, "yes", None)],
        *[("backbone", value) for value in ("hf-hub:a/b", "local-dir:/etc", "../x", "a b", "", "a" * 81, None, 3)],
        *[("device", value) for value in ("cuda:999", "meta", "cpu --x", "")],
        *[("optimizer", value) for value in ("adam", None, ["adamw"])],
        *[("global_scale", value) for value in (0.5, [1], [1, 2, 3], ["a", "b"], [1, 0.5])],
        *[("block_size", value) for value in (512, 0)],
    ],
)
def test_settings_that_cannot_be_are_refused_at_their_place(field: str, value: object):
    with pytest.raises(ConfigError) as refused:
        config_of("smoke", {field: value})
    assert getattr(refused.value, "field", None) == field and str(refused.value).endswith(".")


def test_nothing_but_settings_can_be_changed(client: TestClient):
    for name in ("data", "run_dir", "--track", "__class__", "lr\n", "job"):
        told = ask(client, "plan", changes={name: 1})
        assert "no run has" in told["error"]["text"] and name not in told["error"]["text"]
    assert ask(client, "plan", preset="../demo")["field"] == "preset"
    for wish in ({"changes": {"a" * 81: 1}}, {"changes": {f"x{i}": i for i in range(99)}}, {"processes": 0},
                 {"processes": 10**9}, {"name": "x" * 201}, {"preset": "x" * 81}, {"data": {"kind": "file"}},
                 {"data": {"kind": "folder", "root": "photos", "path": "x" * 4001}}):  # fmt: skip
        assert client.post("/api/train/start", json=WISH | wish).status_code == 422, wish


# What it would take


def test_a_plan_counts_names_and_says_the_line(client: TestClient, photos: Path):
    trip = {"kind": "folder", "root": "photos", "path": "trip"}
    told = ask(client, "plan", data=trip, changes={"batch_size": 2, "steps": 5})
    assert told["plan"]["images"] == 3 and told["plan"]["problems"] == [] and told["name"] == "trip-smoke"
    words = told["command"].split()
    assert words[:4] == ["python", "-m", "memssl_core", "train"]
    assert flags(words[3:]) == {"--data": str(photos / "trip"), "--run-dir": str(paths.runs_dir() / "trip-smoke"),
                                "--preset": "smoke", "--batch-size": "2", "--steps": "5"}  # fmt: skip
    (paths.runs_dir() / "trip-smoke").mkdir(parents=True)
    assert ask(client, "plan", data=trip)["name"] == "trip-smoke-2"
    assert ask(client, "plan", processes=2)["command"].startswith(
        "python -m torch.distributed.run --standalone --nproc-per-node 2 -m memssl_core train --data drawn:0:64 "
    )


@pytest.mark.parametrize(
    ("wish", "words", "field"),
    [
        ({"data": {"kind": "folder", "root": "photos", "path": "../.."}}, "not there", "data"),
        ({"data": {"kind": "folder", "root": "/", "path": "etc"}}, "not there", "data"),
        ({"data": {"kind": "folder", "root": "photos", "path": "linked"}}, "leads out", "data"),
        ({"data": {"kind": "folder", "root": "photos", "path": "out.parquet"}}, "not there", "data"),
        ({"data": {"kind": "folder", "root": "photos", "path": "trip/0.png"}}, "not there", "data"),
        ({"data": {"kind": "drawn", "count": 10**9}}, "another count", "data"),
        ({"data": {"kind": "hub", "name": "--flag"}}, "no name of a data set", "data"),
        ({"data": {"kind": "uploads", "count": 3}}, "cannot be used", "data"),
        ({"name": "../x"}, "choose another name", "name"),
        ({"name": "-x"}, "choose another name", "name"),
        ({"name": "taken"}, "already", "name"),
        ({"changes": {"block_size": 512}}, "try block_size", "block_size"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_started(
    client: TestClient, photos: Path, started: list, wish: dict, words: str, field: str
):
    (photos / "linked").mkdir()
    (photos / "linked" / "a.png").symlink_to("/etc/hostname")
    (photos / "out.parquet").symlink_to("/etc/hostname")
    (paths.runs_dir() / "taken").mkdir(parents=True)
    for what in ("plan", "start"):
        told = ask(client, what, **wish)
        assert words in told["error"]["text"] and told["field"] == field and str(photos) not in str(told), told
    if field != "name":
        assert words in ask(client, "measure", **wish)["error"]["text"]
    assert not started and [path.name for path in paths.runs_dir().iterdir()] == ["taken"]


def test_what_cannot_run_is_a_problem_without_folders_in_it(client: TestClient, photos: Path, started: list):
    (photos / "empty").mkdir()
    for path, words in (("trip", "photos/trip has 3 pictures"), ("empty", "no pictures")):
        data = {"kind": "folder", "root": "photos", "path": path}
        (problem, *_) = ask(client, "plan", data=data)["plan"]["problems"]
        assert words in problem and str(photos.parent) not in problem
        assert ask(client, "start", data=data)["error"]["text"] == problem
    assert not started and not paths.runs_dir().exists()


def test_a_table_of_a_root_is_trained_on(client: TestClient, photos: Path):
    pictures = [{"bytes": upload(photo(32, 32, seed), "a.png", "PNG")["buffer"], "path": None} for seed in range(4)]
    pq.write_table(pa.table({"image": pictures, "label": [0, 1, 0, 1]}), photos / "trip" / "few.parquet")
    data = {"kind": "folder", "root": "photos", "path": "trip/few.parquet"}
    told = ask(client, "plan", data=data, changes={"batch_size": 2})
    assert told["plan"]["images"] == 4 and told["plan"]["classes"] == 2 and told["name"] == "few-smoke"
    assert client.get("/api/folders?root=photos&path=trip").json()["tables"] == ["few.parquet"]


def test_of_the_hub_only_what_it_tells_is_counted(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    for count in (500, 3, None):
        rows = HubRows("hf:a/b", "a/b", None, "image", "label", ("cat", "dog"), (), count)
        monkeypatch.setattr("memssl_core.data.hub_data.open_hub_rows", lambda spec, rows=rows: rows)
        told = ask(client, "plan", data={"kind": "hub", "name": "a/b"})
        plan = told["plan"]
        assert plan["images"] == count and plan["classes"] == 2 and "fetched when the run begins" in plan["advice"][-1]
        assert bool(plan["problems"]) == (count == 3) and "drawn" not in str(told)


# Starting


def test_a_run_is_started_as_a_job_of_its_own(client: TestClient, photos: Path, started: list):
    data = {"kind": "folder", "root": "photos", "path": ""}
    assert ask(client, "start", data=data, changes={"batch_size": 2}, name=" mine ") == {"run": "mine"}
    (asked,) = started
    verb, *_ = asked["argv"]
    told = flags(asked["argv"])
    assert verb == "train" and asked["kind"] == "train" and asked["module"] == "memssl_core"
    assert asked["folder"] == paths.runs_dir() / "mine" == Path(told["--run-dir"])
    assert (told["--data"], told["--batch-size"], told["--at-once"]) == (str(photos), "2", "1")
    assert "--stop-after-hours" not in told
    assert "already" in ask(client, "start", name="mine")["error"]["text"] and len(started) == 1


def test_limits_hold_when_a_run_is_started(ready: Future, started: list):
    wishes = {"at_once": 3, "runs": 1, "hours": 1.5, "gigabytes": 1.0}
    client = routes_of(Context("small", ready, training=Training(**wishes)))
    told = client.get("/api/train").json()
    assert told["at_once"] == 3 and told["limits"] == {name: wishes[name] for name in ("runs", "hours", "gigabytes")}
    assert ask(client, "start", name="one") == {"run": "one"}
    asked = flags(started[0]["argv"])
    assert (asked["--at-once"], asked["--stop-after-hours"]) == ("3", "1.5")
    write_run("two", "stopped")
    assert "at most 1 runs" in ask(client, "start", name="three")["error"]["text"]
    full = routes_of(Context("small", ready, training=Training(gigabytes=0.001)))
    assert "delete one first" in ask(full, "start", name="three")["error"]["text"] and len(started) == 1


# Measuring


def test_a_few_steps_are_measured_by_a_job_that_is_not_listed(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def start(argv: list[str], *, root: Path, **facts: str) -> jobs.JobFolder:
        asked.append(argv)
        job = jobs.JobFolder(root / f"measure-{len(asked)}").create()
        (job.path / "job.json").write_text(json.dumps({"started_s": len(asked), **facts}))
        job.write_status("waiting", words="starting")
        return job

    monkeypatch.setattr(jobs, "start", start)
    first, second = (ask(client, "measure", changes={"steps": steps})["job"] for steps in (5, 6))
    assert asked[1] == ["plan", "--data", "drawn:0:64", "--preset", "smoke", "--steps", "6", "--processes", "1"]
    assert jobs.JobFolder(measures_dir() / first).stop_requested() and client.get("/api/jobs").status_code == 204
    assert client.get(f"/api/train/measure/{second}").json() == {"state": "waiting", "words": "starting"}
    job = jobs.JobFolder(measures_dir() / second)
    counted, found = {"problems": ["The disk is full."]}, {"images_per_s": 20.0, "seconds": 3.0}
    for measured in (found, None):
        (job.path / "result.json").write_text(json.dumps({"plan": counted, "measured": measured}))
        job.write_status("finished", result="result.json")
        told = client.get(f"/api/train/measure/{second}").json()
        assert told.get("measured") == measured and (measured or told["error"]["text"] == "The disk is full.")
    job.write_status("failed", message="Out of memory at /srv/x; lower batch_size.")
    assert client.get(f"/api/train/measure/{second}").json()["error"]["text"] == "Out of memory at x; lower batch_size."
    assert client.post(f"/api/train/measure/{second}/stop", json={}).json() == {} and job.stop_requested()
    for name in ("%2e%2e", "..%2fjobs", "locks", "a"):
        assert client.get(f"/api/train/measure/{name}").status_code in (404, 405)
    monkeypatch.setattr(jobs.JobFolder, "kill", lambda self: killed.append(self.path.name) or True)
    killed: list[str] = []
    for steps in (7, 8):
        assert "job" in ask(client, "measure", changes={"steps": steps})
    assert killed == [first, first]  # as it was asked to stop before
    monkeypatch.setattr(jobs, "start", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert "no space left on device; mend that" in ask(client, "measure")["error"]["text"]


# Where it is not offered, and where it is to those who log in


@pytest.fixture
def nothing_started(monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    commands: list = []
    monkeypatch.setattr("subprocess.Popen", lambda *given, **named: commands.append(given) or 1 / 0)
    return lambda: not commands and not paths.runs_dir().exists() and not jobs.find() and not measures_dir().exists()


def test_the_public_default_has_none_of_it(ready: Future, photos: Path, nothing_started: Callable[[], bool]):
    with TestClient(build(ready, source="small", public=True, roots={"photos": photos}), base_url=HERE) as client:
        for path in READING:
            assert client.get(f"/api/{path}").status_code == 404, path
        for path in CHANGING:
            assert client.post(f"/api/{path}", json=WISH | {"rev": "", "name": "x"}).status_code == 404, path
        assert client.get("/api/folders?root=photos").status_code == 403
        facts, config = client.get("/api/facts").json(), client.get("/config").json()
        assert not facts["training"] and "offers no training" in facts["training_words"] and facts["banner"] == ""
        assert not [one for one in config["components"] if one["props"].get("elem_id") == "train"]
        reached = set()
        for event in [one["id"] for one in config["dependencies"]]:  # by index, as no page of ours would ask
            for data in ([], [WISH], [None, WISH]):
                asked = {"fn_index": event, "data": data, "event_data": WISH, "session_hash": "x"}
                reached |= {client.post(f"/gradio_api/{path}", json=asked).status_code for path in BY_INDEX}
        assert 200 in reached and nothing_started()


def test_the_tab_is_there_where_training_is_offered(ready: Future):
    with TestClient(build(ready, source="small", training=Training()), base_url=HERE) as client:
        config = client.get("/config").json()
        assert [one for one in config["components"] if one["props"].get("elem_id") == "train"]
        script = client.get("/ui/plotly.min.js")
        assert "javascript" in script.headers["content-type"] and "max-age" in script.headers["cache-control"]
        assert len(script.content) > 1_000_000


def test_curves_without_plotly_are_a_sentence(ready: Future, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ui.page.find_spec", lambda name: None)
    from ui.page import plotly

    assert plotly().status_code == 404 and b"pip install plotly" in bytes(plotly().body)


def test_on_a_public_server_whoever_logs_in_may_train(ready: Future, photos: Path, started: list):
    context = Context("small", ready, public=True, roots={"photos": photos}, training=Training(hours=24, runs=20))
    client = routes_of(context, login=basic("ada", "secret"))
    for path in (*READING, "folders?root=photos", "facts"):
        assert client.get(f"/api/{path}").status_code == 401, path
    for path in CHANGING:
        assert client.post(f"/api/{path}", json=WISH).status_code == 401, path
    client.headers.update(INSIDE)
    assert client.get("/api/folders?root=photos").json()["folders"] == ["trip"]
    assert client.get("/api/jobs").status_code == 403
    assert client.get("/api/train").json()["offline"]
    for what in ("plan", "measure", "start"):  # which would fill the disk beyond any limit
        assert "not fetched for visitors" in ask(client, what, data={"kind": "hub", "name": "a/b"})["error"]["text"]
    told = ask(client, "plan", data={"kind": "folder", "root": "photos", "path": "trip"}, changes={"batch_size": 2})
    assert "--data photos/trip --run-dir trip-smoke" in told["command"] and str(photos.parent) not in str(told)
    assert client.post("/api/train/start", json=WISH, headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.post("/api/train/start", content=json.dumps(WISH)).status_code == 415
    assert ask(client, "start", name="mine") == {"run": "mine"} and started[0]["argv"][-1] == "24.0"
    write_run("ours", "stopped", data=str(photos / "trip"))
    assert listed(client)["ours"]["data"] == "photos/trip" and str(photos) not in client.get("/api/runs/ours").text
