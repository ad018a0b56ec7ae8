"""A run's events as columns: what is void, what is thinned, and files that were cut off anywhere."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memssl_core.jobs import event_writer
from ui.curves import MOST_MARKS, MOST_POINTS, Stories, newest, standing, table, thinned, told, well_formed

VALUES = st.one_of(st.none(), st.floats(-1e6, 1e6), st.integers(-5, 5))
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("step"), st.integers(1, 30)),
        st.tuples(st.just("probe"), st.integers(0, 30)),
        st.tuples(st.just("saved"), st.integers(1, 30)),
        st.tuples(st.sampled_from(["taken up", "begun"]), st.integers(0, 30)),
    ),
    max_size=40,
).map(lambda kinds: [event(kind, step, time_s=float(i)) for i, (kind, step) in enumerate(kinds)])


def event(kind: str, step: int, **facts) -> dict:
    if kind in ("taken up", "begun"):
        facts["resumed"], step = kind == "taken up", step if kind == "taken up" else 0
        kind = "started"
    return {"event": kind, "step": step, **facts}


def write(path: Path, events: list[dict]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in events))
    return path


def is_void(events: list[dict], i: int, kind: str) -> bool:
    """Slowly: whether something later in the file says that the run was not there yet, or there again."""
    for later in events[i + 1 :]:
        begins = later["event"] == "started" and not later["resumed"]
        if later["event"] == "started" and (begins or later["step"] < events[i]["step"]):
            return True
        if later["event"] == kind and later["step"] <= events[i]["step"]:
            return True
    return False


@given(EVENTS)
def test_what_stands_is_what_nothing_later_voids(events: list[dict]):
    lines, _, reset = standing(events)
    for kind, line in lines.items():
        slowly = [one for i, one in enumerate(events) if one["event"] == kind and not is_void(events, i, kind)]
        assert line == slowly and line == sorted(line, key=lambda one: one["step"])
    starts = [one["step"] if one["resumed"] else -1 for one in events if one["event"] == "started"]
    assert reset == min(starts, default=None)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 9)), max_size=5), st.lists(st.integers(0, 60), max_size=4))
def test_deltas_add_up_to_the_whole(tmp_path_factory: pytest.TempPathFactory, sessions: list, cuts: list[int]):
    """Sessions of a run that each go back some steps, then on; looked at after some of the events."""
    events, at = [], 0
    for back, on in sessions:
        at = max(0, at - back)
        events.append(event("taken up" if at else "begun", at))
        events += [event(kind, at + i, number=len(events)) for i in range(1, on + 1) for kind in ("step", "probe")]
        at += on
    path, offset, known = tmp_path_factory.mktemp("run") / "events.jsonl", 0, {"steps": [], "probes": []}
    for cut in [*sorted(cuts), len(events)]:
        answer = told(write(path, events[:cut]), offset)
        offset = answer["next"]
        for noun, line in known.items():
            columns = answer[noun]["columns"]
            line[:] = [point for point in line if point[0] <= answer.get("reset", math.inf)]
            line += zip(columns["step"], columns.get("number", []), strict=True)
    whole = told(path, 0)
    for noun, line in known.items():
        columns = whole[noun]["columns"]
        assert line == list(zip(columns["step"], columns.get("number", []), strict=True))


def test_a_resumed_run_goes_on_where_it_was_taken_up(tmp_path: Path):
    emit = event_writer(tmp_path / "events.jsonl")
    emit("started", step=0, resumed=False)
    emit("probe", step=0, knn_top1=6.0)
    for step in range(1, 16):
        emit("step", step=step, loss=9 - step)
    emit("saved", step=10)
    known = told(tmp_path / "events.jsonl", 0)
    assert known["steps"]["columns"]["step"] == list(range(1, 16)) and "reset" not in known
    emit("started", step=10, resumed=True, restored="Restored step 10 of 20.")
    emit("step", step=11, loss=-20)
    delta = told(tmp_path / "events.jsonl", known["next"])
    assert delta["reset"] == 10 and delta["steps"]["columns"] == {
        "step": [11],
        "time_s": [pytest.approx(0, abs=1e12)],
        "loss": [-20],
    }
    assert delta["marks"][0]["event"] == "resumed" and "Restored" in delta["marks"][0]["message"]
    whole = told(tmp_path / "events.jsonl", 0)
    assert whole["steps"]["columns"]["loss"] == [*(9 - step for step in range(1, 11)), -20]
    emit("started", step=0, resumed=False)  # had saved nothing, and begins again
    assert told(tmp_path / "events.jsonl", delta["next"])["reset"] == -1


def test_a_file_that_was_replaced_or_never_was_so_long_is_told_anew(tmp_path: Path):
    path = write(tmp_path / "events.jsonl", [event("step", 1, loss=2.0), event("step", 2, loss=1.0)])
    for since in (path.stat().st_size + 1, 7, 2**60):
        answer = told(path, since)
        assert answer["reset"] == -1 and answer["steps"]["columns"]["step"] == [1, 2]
    assert told(tmp_path / "nothing", 5)["next"] == 0
    assert told(path, path.stat().st_size)["steps"]["columns"] == {"step": []}


@given(st.binary(max_size=60), st.integers(0, 400))
def test_no_byte_of_a_file_can_stop_us(tmp_path_factory: pytest.TempPathFactory, garbage: bytes, cut: int):
    path = tmp_path_factory.mktemp("run") / "events.jsonl"
    odd = [
        *([1], "step", None, {"event": "step"}, {"event": "step", "step": True}, {"event": 3, "step": 1}),
        {"event": "step", "step": 2**70}, {"event": "probe", "step": -1},
        event("step", 3, loss=None, rate=math.inf, name="x", flag=True, huge=10**400, lr=0.5),
        event("alarm", 3, message=["not", "words"]), event("saved", 3, time_s="now"),
    ]  # fmt: skip
    data = "".join(json.dumps(one) + "\n" for one in odd).encode()
    path.write_bytes(data[:cut] + b"\n" + garbage + b"\n" + data + data[:cut])
    answer = told(path, 0)
    json.dumps(answer, allow_nan=False)
    columns = answer["steps"]["columns"]
    assert columns["step"][-1] == 3 and columns["lr"][-1] == 0.5 and not {"name", "flag", "rate", "huge"} & set(columns)
    story = Stories().of(path)
    assert story.step and story.step["step"] == 3


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=90), st.integers(2, 20).map(lambda half: 2 * half))
def test_thinned_curves_keep_their_ends_and_extremes(rows: list[tuple], most: int):
    steps = [3 * i for i in range(len(rows))]
    columns = {"step": steps, "a": [a for a, _ in rows], "b": [b for _, b in rows]}
    kept = thinned(columns, most)
    assert len(kept["step"]) <= max(most, 4) and all(len(column) == len(kept["step"]) for column in kept.values())
    assert kept["step"] == sorted(set(kept["step"])) and set(kept["step"]) <= set(steps)
    for name in columns:
        assert (kept[name][0], kept[name][-1]) == (columns[name][0], columns[name][-1])
    if len(rows) <= most:
        assert kept == columns
        return
    for name in "ab":
        for at in range(1, len(kept["step"]) - 1, 2):  # slowly: each part by itself
            low, high = kept["step"][at] // 3, kept["step"][at + 1] // 3
            part = [value for value in columns[name][low : high + 1] if value is not None]
            pair = kept[name][at : at + 2]
            assert sorted(v for v in pair if v is not None) == (sorted([min(part), max(part)]) if part else [])
            if part and part.index(min(part)) != part.index(max(part)):
                assert (pair[0] == min(part)) == (part.index(min(part)) < part.index(max(part)))


def test_a_long_run_travels_in_few_points(tmp_path: Path):
    rng = np.random.default_rng(0)
    events = [event("step", i, loss=float(x)) for i, x in enumerate(rng.normal(size=9000))]
    events += [event("skipped_image", 1, message=str(i)) for i in range(3 * MOST_MARKS)]
    answer = told(write(tmp_path / "events.jsonl", events), 0)
    columns = answer["steps"]["columns"]
    assert len(columns["step"]) == MOST_POINTS and columns["step"][-1] == 8999
    assert max(columns["loss"]) == max(one["loss"] for one in events[:9000])
    assert [mark["message"] for mark in answer["marks"]] == [str(i) for i in range(2 * MOST_MARKS, 3 * MOST_MARKS)]


@given(EVENTS, st.lists(st.integers(0, 4000), max_size=4))
def test_a_story_read_in_pieces_is_the_story_read_at_once(
    tmp_path_factory: pytest.TempPathFactory, events: list[dict], cuts: list[int]
):
    path = tmp_path_factory.mktemp("run") / "events.jsonl"
    data = "".join(json.dumps(one) + "\n" for one in events).encode()
    stories = Stories()
    for cut in sorted(cuts):
        path.write_bytes(data[:cut])
        stories.of(path)
    path.write_bytes(data)
    story = stories.of(path)
    assert story.probes == standing(events)[0]["probe"]
    for one, kind in ((story.step, "step"), (story.started, "started")):
        assert one == next((e for e in reversed(events) if e["event"] == kind), None)
    assert story.last == (events[-1] if events else None) and story.first == (events[0] if events else None)
    worked, since = 0.0, None
    for i, one in enumerate(events):  # slowly: the time from each start to what is the last before the next one
        if one["event"] == "started":
            since = one["time_s"]
        if since is not None and (i + 1 == len(events) or events[i + 1]["event"] == "started"):
            worked += one["time_s"] - since
    assert story.worked_s == worked


def test_a_story_does_not_go_on_in_another_file_of_the_same_number(tmp_path: Path):
    stories, path = Stories(), tmp_path / "events.jsonl"
    stories.of(write(path, [event("begun", 0, time_s=5.0), event("failed", 0, time_s=6.0)]))
    number = path.stat().st_ino
    again = write(path, [event("begun", 0, time_s=70.0), event("probe", 0, knn_top1=3.0, time_s=100.0)])
    story = stories.of(again)
    assert again.stat().st_ino == number and len(story.probes) == 1 and story.worked_s == 30.0


def test_the_best_probe_is_the_first_of_the_best(tmp_path: Path):
    probes = [event("probe", step, knn_top1=value) for step, value in ((0, 6.0), (10, 40.0), (20, 40.0), (30, None))]
    story = Stories().of(write(tmp_path / "events.jsonl", probes))
    assert story.best("knn_top1") == [40.0, 10] and story.best("rankme") is None


def test_helpers_take_nothing_for_something():
    assert table([]) == {"step": []} and newest([]) == [] and well_formed([{}, 1]) == []
