"""What the tabs answer, without a browser."""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from browser.pictures import hostile, photo, upload
from gradio.utils import get_upload_folder

from memssl_core.errors import ModelError
from ui import attention, memory, wire
from ui.context import Context, Turns, handler
from ui.facts import first_size, input_sizes, page_facts
from ui.messages import explain
from ui.store import Picture
from ui.tray import add_picture, short_name


def kept(context: Context, key: str) -> bytes:
    data = context.results.get(key)
    assert data is not None
    return data


def picture(context: Context, handle: str) -> Picture:
    found = context.pictures.get(handle)
    assert found is not None
    return found


@pytest.fixture
def arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a file where Gradio puts uploads; gives what the page then sends."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    assert get_upload_folder() == str(tmp_path)

    def put(file: dict) -> dict:
        path = tmp_path / "upload.bin"
        path.write_bytes(file["buffer"])
        return {"path": str(path), "name": file["name"], "ticket": 7}

    return put


@pytest.mark.parametrize("file, can_be_shown", hostile(), ids=lambda one: one["name"] if isinstance(one, dict) else "")
def test_a_file_becomes_a_picture_or_a_sentence(context: Context, arrive, file: dict, can_be_shown: bool):
    visit, answer = add_picture(context, ("before",), arrive(file))
    assert answer["ticket"] == 7
    assert ("picture" in answer, "error" in answer) == (can_be_shown, not can_be_shown)
    if can_be_shown:
        assert visit == ("before", answer["picture"]["handle"])
        assert picture(context, visit[1]).shown.mode == "RGB"
    else:
        assert visit == ("before",)
        assert os.sep not in answer["error"]["text"] and "Error" not in answer["error"]["text"]


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../../etc/passwd", None, "", "no-such-file", __file__, {"a": 1}, "a\0b", "a" * 5000]
)
def test_only_uploads_are_read(context: Context, arrive, path: object):
    visit, answer = add_picture(context, (), arrive(upload(photo(), "a.png", "PNG")) | {"path": path})
    assert visit == () and "did not arrive" in answer["error"]["text"]


def test_a_link_out_of_the_upload_folder_is_not_followed(context: Context, arrive, tmp_path: Path):
    (tmp_path / "link.png").symlink_to(__file__)
    assert "error" in add_picture(context, (), {"path": str(tmp_path / "link.png")})[1]


def test_a_visit_keeps_its_latest_twelve(context: Context, arrive):
    visit: tuple = ()
    for seed in range(14):
        visit, _ = add_picture(context, visit, arrive(upload(photo(32, 32, seed), "a.png", "PNG")))
    assert len(visit) == 12 and all(context.pictures.get(handle) for handle in visit)


@pytest.mark.parametrize(
    "given, shown",
    [("/home/me/a b.png", "a b.png"), ("C:\\x\\y.png", "y.png"), (None, "picture"), ("a" * 200, "a" * 80)],
)
def test_names_are_shortened(given: object, shown: str):
    assert short_name(given) == shown


def ask(**changed) -> dict:
    return {"ask": "maps", "handle": "chelsea", "query": "cls", "size": 64} | changed


def test_attention_is_what_the_workbench_says(context: Context):
    key = attention.show(context, (), ask(query=5))["key"]
    arrays, facts = wire.unpack(kept(context, key))
    rows = arrays["rows"]
    chelsea = picture(context, "chelsea")
    found = context.workbench().attention_all(chelsea.data, query=5, size=64)
    np.testing.assert_array_equal(rows, found.rows)
    assert facts["grid"] == list(found.grid) and facts["n_prefix"] == 1 and facts["query"] == 5
    assert (facts["frame"]["width"], facts["frame"]["height"]) == (chelsea.width, chelsea.height)
    np.testing.assert_allclose(rows.sum(-1), 1, rtol=1e-5)


def test_an_answer_is_computed_once(context: Context):
    key = attention.show(context, (), ask())["key"]
    context.results.put(key, b"kept")
    assert attention.show(context, (), ask())["key"] == key and context.results.get(key) == b"kept"
    others = [
        attention.show(context, (), ask(**other))["key"] for other in ({"query": 0}, {"size": 32}, {"query": "mean"})
    ]
    assert len({key, *others}) == 4


@pytest.mark.parametrize(
    "wrong", [{"query": "rm -rf"}, {"query": True}, {"query": 1.5}, {"query": -1}, {"query": 10**6}, {"size": 10**6},
              {"size": None}, {"handle": "somebody else's"}, {"handle": None}, {"model": "nobody's"}],
)  # fmt: skip
def test_a_wrong_question_is_answered_in_a_sentence(context: Context, wrong: dict):
    asked = handler(context, attention.show)
    answer = asked((), gr.EventData(None, ask(ticket=3, **wrong) | wrong))
    assert answer["ticket"] == 3 and "key" not in answer
    assert len(answer["error"]["text"]) > 20 and "Something went wrong" not in answer["error"]["title"]


def test_neighbours_carry_their_provenance(context: Context):
    key = memory.show(context, (), {"handle": "drawn-1", "space": "embedding", "k": 10})["key"]
    told = json.loads(kept(context, key))
    workbench = context.workbench()
    assert workbench.model.memory is not None
    found = workbench.neighbours(picture(context, "drawn-1").data, space="embedding", k=10)
    assert [row["slot"] for row in told["rows"]] == found.ids.tolist()
    assert [row["score"] for row in told["rows"]] == pytest.approx(found.scores.tolist())
    assert told["exact"] and told["last_step"] == workbench.model.memory.step.max()
    first = told["rows"][0]
    assert first["thumb"] == f"api/thumb/{context.opened().handle}/{first['slot']}" and len(first["box"]) == 4


def test_the_query_is_the_crop_the_model_saw(context: Context):
    transform = context.workbench().model.transform  # keeps the whole short side
    assert transform.crop_box(100, 50) == (0.25, 0.0, 0.75, 1.0)
    assert transform.crop_box(50, 100) == (0.0, 0.25, 1.0, 0.75)


@pytest.mark.parametrize("wrong", [{"k": 10**9}, {"space": "dreams"}, {"handle": "nobody"}])
def test_wrong_questions_about_memory(context: Context, wrong: dict):
    with pytest.raises(Exception, match=r"[a-z ]{20,}") as caught:
        memory.show(context, (), {"handle": "chelsea", "space": "memory", "k": 10} | wrong)
    assert explain(caught.value)["title"] != "Something went wrong here."


def test_input_sizes_fit_the_model():
    small, base = {"input_px": 96, "patch_px": 8}, {"input_px": 224, "patch_px": 16}
    assert input_sizes(small) == [96, 192, 288] and first_size(small) == 192
    assert input_sizes(base) == [224, 448] and first_size(base) == 224
    assert input_sizes({"input_px": 518, "patch_px": 8}) == [518]  # the model's own is always offered


def test_facts_in_each_state(context: Context):
    starting = page_facts(Context("embedded", Future()))
    assert starting["state"] == "starting" and "model" not in starting and starting["pictures"]
    broken: Future = Future()
    broken.set_exception(ModelError("There is no such model; name another."))
    failed = page_facts(Context("embedded", broken))
    assert failed["state"] == "failed" and "no such model" in failed["text"]
    ready = page_facts(context)
    assert ready["state"] == "ready" and ready["model"]["memory"] == {
        "slots": 64,
        "spaces": ["memory", "embedding"],
    }
    json.dumps(ready)


def test_a_surprise_is_logged_under_the_id_that_is_shown(caplog: pytest.LogCaptureFixture):
    told = explain(RuntimeError("secret /srv/path"))
    incident = told["text"].rpartition("id ")[2].rstrip(").")
    assert "secret" not in str(told) and incident in caplog.text


def test_turns_are_taken_one_after_another():
    turns = Turns(model=1, decode=2)
    with turns.take("model"):
        with turns.take("decode"), turns.take("decode"):
            pass
        with pytest.raises(ModelError, match="Too many people"), turns.take("model", wait_s=0.01):
            pass
    with turns.take("model", wait_s=0.01):  # whoever gave up waiting takes no place
        pass
    with pytest.raises(KeyError), turns.take("model"):  # given back after a failure too
        raise KeyError
    with turns.take("model"):
        pass


def test_a_turn_goes_to_whoever_waits_longest():
    """One who asks again at once, as for the next part of long work, comes after those who wait."""
    turns, order = Turns(model=1), []

    def ask(name: str) -> None:
        with turns.take("model"):
            order.append(name)

    others = [threading.Thread(target=ask, args=(name,)) for name in ("second", "third")]
    with turns.take("model"):
        for at, other in enumerate(others):
            other.start()
            while len(turns._waiting["model"]) <= at:
                time.sleep(0.001)
    ask("again")
    for other in others:
        other.join(10)
    assert order == ["second", "third", "again"]
