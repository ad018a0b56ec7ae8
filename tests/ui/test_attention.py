"""What the tab Attention answers: registers, patch norms, rollout, input sizes, and which attention head matters."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from browser.pictures import photo, upload
from browser.run_folders import routes_of
from fastapi.testclient import TestClient

from analysis.tokens import CACHE_BYTES
from tests.ui.test_routes import HERE, call, send
from ui import attention, heads, wire
from ui.attention import show
from ui.context import Context, Turns, handler, open_source
from ui.facts import MOST_PATCHES, attention_sizes, input_sizes, prefix_tokens
from ui.page import build
from ui.store import Picture


def ask(kind: str = "maps", **changed) -> dict[str, Any]:
    return {"ask": kind, "handle": "chelsea", "query": "cls", "size": 64, "start": 0} | changed


def answer(context: Context, kind: str, **changed) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    data = context.results.get(show(context, (), ask(kind, **changed))["key"])
    assert data is not None
    return wire.unpack(data)


def chelsea(context: Context) -> Picture:
    found = context.pictures.get("chelsea")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def registers() -> Context:
    """A page whose model has a class token, four registers, and no memory."""
    ready: Future = Future()
    ready.set_result(open_source("random:vit_small_patch14_reg4_dinov2", "cpu"))
    return Context("registers", ready)


def test_norms_are_those_of_what_leaves_each_block(context: Context):
    arrays, facts = answer(context, "maps", size=64)
    assert facts["prefix"] == ["cls"] and arrays["norms"].shape == (3, np.prod(facts["grid"]))
    for block in range(2):
        cells, _ = context.workbench().features(chelsea(context).data, 64, layer=block)
        expected = np.linalg.norm(cells.reshape(-1, cells.shape[2]).astype(np.float64), axis=1)
        np.testing.assert_allclose(arrays["norms"][block], expected, rtol=1e-5)


def test_every_prefix_token_can_be_asked(registers: Context):
    card = registers.workbench().model.card
    names = prefix_tokens(card)
    assert names == ["cls", "register:0", "register:1", "register:2", "register:3"]
    seen = []
    for name in names:
        arrays, facts = answer(registers, "maps", query=name, size=card["input_px"])
        assert facts["prefix"] == names and facts["n_prefix"] == 5 and facts["query"] == name
        np.testing.assert_allclose(arrays["rows"].sum(-1), 1, rtol=1e-4)
        seen.append(arrays["rows"])
    assert all(not np.array_equal(one, seen[0]) for one in seen[1:])
    told = handler(registers, show)((), gr.EventData(None, ask(query="register:4", size=card["input_px"])))
    assert "4 register" in told["error"]["text"]


@pytest.mark.parametrize("query, start", [("cls", 0), ("cls", 1), (7, 0), ("mean", 2)])
def test_rollout_is_the_product_of_the_blocks(context: Context, query: str | int, start: int):
    arrays, facts = answer(context, "rollout", query=query, start=start, size=32)
    workbench, picture = context.workbench(), chelsea(context).data
    patches, prefix = int(np.prod(facts["grid"])), facts["n_prefix"]
    tokens = patches + prefix
    whole = [
        workbench.attention(picture, block, ["cls", *range(patches)], 32).rows.astype(np.float64).mean(0)
        for block in range(3)
    ]
    first = np.zeros(tokens)
    first[{"cls": slice(0, 1), "mean": slice(prefix, None)}.get(str(query), slice(prefix + 7, prefix + 8))] = 1
    first /= first.sum()
    product = np.eye(tokens)
    for block in range(3):
        if block >= start:
            product = (0.5 * whole[block] + 0.5 * np.eye(tokens)) @ product
        expected = first @ product if block >= start else np.zeros(tokens)
        np.testing.assert_allclose(arrays["rows"][block], expected, atol=1e-5)


def test_maps_and_rollout_are_kept_apart_and_once(context: Context):
    keys = [show(context, (), ask("maps"))["key"]]
    keys += [show(context, (), ask("rollout", start=start))["key"] for start in range(3)]
    assert len({*keys}) == 4
    context.results.put(keys[2], b"kept")
    assert show(context, (), ask("rollout", start=1))["key"] == keys[2] and context.results.get(keys[2]) == b"kept"


WRONG = [
    {"ask": None}, {"ask": "npz"}, {"ask": ["maps"]}, {"query": "register:9"}, {"query": "cls;mean"}, {"query": "0,0"},
    {"query": ["cls"]}, {"query": "register:0\n"}, {"size": True}, {"size": "64"}, {"size": 65}, {"size": 4096},
    {"start": 3}, {"start": -1}, {"start": True}, {"start": "0"}, {"start": None}, {"start": 0.5},
    {"handle": "somebody else's"}, {"handle": None}, {"model": "nobody's"}, {"model": ["x"]}, {"model": {"a": 1}},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_wrong_question_is_answered_in_a_sentence(context: Context, wrong: dict):
    told = handler(context, show)((), gr.EventData(None, ask("rollout", ticket=3) | wrong))
    assert told["ticket"] == 3 and "key" not in told
    assert len(told["error"]["text"]) > 20 and "Something went wrong" not in told["error"]["title"]


def test_a_number_longer_than_python_writes_is_no_patch(context: Context):
    told = handler(context, show)((), gr.EventData(None, ask(query=10**5000)))
    assert told["error"]["text"] == attention.NO_QUERY


def test_results_come_over_http(context: Context):
    client = routes_of(context)
    maps, rollout = (show(context, (), ask(kind))["key"] for kind in ("maps", "rollout"))
    arrays, facts = wire.unpack(client.get(f"/api/attention/{maps}").content)
    saved = np.load(io.BytesIO(client.get(f"/api/attention/{maps}/npz").content))
    for name in ("rows", "norms"):
        np.testing.assert_array_equal(saved[name], arrays[name])
    assert saved["grid"].tolist() == facts["grid"] and saved["n_prefix"] == 1
    assert wire.unpack(client.get(f"/api/rollout/{rollout}").content)[0]["rows"].shape == arrays["rows"][:, 0].shape
    assert client.get("/api/rollout/0").status_code == 410


# Sizes


def card(input_px: int, patch_px: int, *, width: int = 192, blocks: int = 12) -> dict[str, Any]:
    return {"why_no_attention": None, "input_px": input_px, "patch_px": patch_px, "embedding_width": width,
            "prefix_tokens": 1, "blocks": blocks}  # fmt: skip


@pytest.mark.parametrize("of", [card(32, 8), card(96, 8), card(224, 16), card(224, 32), card(518, 14), card(512, 8)])
def test_sizes_rise_to_4096_patches_and_hold_those_of_the_list(of: dict):
    sizes = attention_sizes(of)
    px, cells, work = zip(*sizes, strict=True)
    assert len(sizes) <= 18 and list(px) == sorted({*px}) and {*input_sizes(of)} <= {*px}
    assert all(long == side * of["patch_px"] for long, side in zip(px, cells, strict=True))
    assert max(cells) == min(MOST_PATCHES, 1024 // of["patch_px"]) and list(work) == sorted(work) and 1 in work


def test_sizes_end_where_the_tokens_of_a_picture_are_no_longer_kept():
    base, large = (attention_sizes(card(224, 16, **of)) for of in ({"width": 768}, {"width": 1024, "blocks": 24}))
    assert base[-1][1] == MOST_PATCHES
    cells = large[-1][1]
    of_two = [2 * 4 * 1024 * 24 * side**2 for side in (cells, MOST_PATCHES)]  # what enters and what leaves a block
    assert 0.9 * CACHE_BYTES < of_two[0] < CACHE_BYTES < of_two[1]


def test_the_work_of_a_size_counts_the_products_of_a_block():
    """Against a count of one block by hand: qkv, scores, mixing, projection, and an MLP four times as wide."""

    def products(tokens: int, width: int) -> int:
        qkv, scores, mixed, projection = (
            tokens * width * 3 * width,
            tokens * tokens * width,
            tokens * tokens * width,
            tokens * width * width,
        )
        return qkv + scores + mixed + projection + 2 * tokens * width * 4 * width

    of = card(224, 16)
    for px, cells, work in attention_sizes(of):
        assert work == pytest.approx(products(cells**2 + 1, 192) / products(14**2 + 1, 192), abs=1e-3), px


def test_sizes_are_what_the_workbench_reads(context: Context):
    from ui.facts import model_facts

    facts = model_facts(context, context.opened().handle)
    assert (facts["blocks"], facts["heads"], facts["prefix_tokens"]) == (3, 3, ["cls"])
    long, cells, _ = facts["attention_sizes"][-1]
    square = context.pictures.add(upload(photo(600, 600), "a.png", "PNG")["buffer"], "a.png")
    key = show(context, (square.handle,), ask(handle=square.handle, size=long))["key"]
    assert wire.unpack(context.results.get(key) or b"")[1]["grid"] == [cells, cells] == [64, 64]


def test_a_model_without_attention_says_so():
    ready: Future = Future()
    ready.set_result(open_source("random:resnet10t", "cpu"))
    convolutional = Context("resnet", ready)
    assert attention_sizes(convolutional.workbench().model.card) == []
    for kind, answer_of in (("maps", show), ("rollout", show), ("block", heads.show)):
        told = handler(convolutional, answer_of)((), gr.EventData(None, ask(kind, size=176, block=0)))
        assert "no attention" in told["error"]["text"]


# Which head matters


def row(context: Context, block: object, **changed) -> dict[str, Any]:
    return heads.show(context, (), {"ask": "block", "handle": "chelsea", "block": block} | changed)


def test_a_row_of_the_head_table_is_what_the_workbench_says(context: Context):
    for block in range(3):
        told = row(context, block)
        found = context.workbench().head_row(chelsea(context).data, block, top=20)
        assert found.kl is not None and found.kept is not None
        np.testing.assert_allclose(told["kl"], found.kl, rtol=1e-6)
        assert told["kept"] == found.kept.tolist() and len(told["moved"]) == 3
        assert told["block"] == block and told["slots"] == 62 and told["top"] == 20 and told["temperature"] > 0
    assert row(context, 2) == told  # kept, with the time it took


def test_others_are_let_in_between_two_attention_heads(context: Context, monkeypatch: pytest.MonkeyPatch):
    expected, take, taken = row(context, 0), Turns.take, []

    @contextmanager
    def counted(self: Turns, name: str) -> Iterator[None]:
        with take(self, name, wait_s=0.01):  # no turn within another
            taken.append(name)
            yield

    monkeypatch.setattr(Turns, "take", counted)
    monkeypatch.setattr("memssl_core.model.silencing.TOKENS_AT_ONCE", 1)
    context.results.drop(list(context.results._values))
    told = row(context, 0)
    assert taken == ["model"] * 5  # the picture, three attention heads, the memory
    np.testing.assert_allclose(told["moved"], expected["moved"], atol=1e-5)


def test_without_a_memory_the_embedding_alone_is_told(registers: Context):
    told = row(registers, 11)
    assert told["kl"] is None and told["kept"] is None and len(told["moved"]) == 6 and told["slots"] == 0


WRONG_HEADS = [
    {"block": 3}, {"block": -1}, {"block": True}, {"block": "0"}, {"block": None}, {"ask": "table"},
    {"handle": "nobody's"}, {"model": "nobody's"},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG_HEADS, ids=str)
def test_a_wrong_question_about_heads(context: Context, wrong: dict):
    asked = {"ask": "block", "handle": "chelsea", "block": 0, "ticket": 3} | wrong
    told = handler(context, heads.show)((), gr.EventData(None, asked))
    assert told["ticket"] == 3 and "moved" not in told
    assert len(told["error"]["text"]) > 20 and "Something went wrong" not in told["error"]["title"]


def test_visitors_ask_about_their_own_pictures_only(context: Context):
    mine = context.pictures.add(upload(photo(64, 48), "a.png", "PNG")["buffer"], "a.png").handle
    for answer_of, asked in ((show, ask(handle=mine)), (show, ask("rollout", handle=mine)),
                             (heads.show, {"ask": "block", "handle": mine, "block": 0})):  # fmt: skip
        assert "error" not in handler(context, answer_of)((mine,), gr.EventData(None, asked))
        assert "no longer kept" in handler(context, answer_of)((), gr.EventData(None, asked))["error"]["text"]


# For programs


@pytest.fixture
def client(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    with TestClient(build(context.opening, source="small"), base_url=HERE) as client:
        yield client


def test_the_endpoint_gives_norms_and_rollout_too(client: TestClient, context: Context):
    file = upload(photo(64, 48), "a.png", "PNG")
    told, summary = call(client, "attention", send(client, file), None, 1, "7", 64, 1)
    saved = np.load(io.BytesIO(client.get(f"/gradio_api/file={told['path']}").content))
    found = context.workbench().rollout(file["buffer"], 7, 64, start=1)
    np.testing.assert_allclose(saved["rollout"], found.rows, rtol=1e-5)
    assert saved["norms"].shape == (1, 48) and saved["grid"].tolist() == [6, 8] and summary["layers"] == [1]
    for wrong in ({"start": 3}, {"start": -4}, {"start": "x"}, {"query": "1;2", "start": 0}):
        asked = {"model": None, "layer": 1, "query": "7", "size": 64, "start": 0} | wrong
        assert "event: error" in refused(client, "attention", send(client, file), *asked.values())


def test_the_endpoint_of_heads_gives_the_whole_table(client: TestClient, context: Context):
    file = upload(photo(64, 48), "a.png", "PNG")
    (told,) = call(client, "heads", send(client, file), None, 5)
    found = context.workbench().head_table(file["buffer"], 5).summary()
    for name in ("kl", "kept", "moved"):
        np.testing.assert_allclose(told[name], found[name], rtol=1e-5, atol=1e-7)
    assert (told["top"], told["slots"]) == (5, 62) and np.shape(told["kl"]) == (3, 3)
    for top in (0, 10**9):
        assert "ask for 1 to" in refused(client, "heads", send(client, file), None, top)


def refused(client: TestClient, name: str, *data: object) -> str:
    begun = client.post(f"/gradio_api/call/{name}", json={"data": data}).json()
    text = client.get(f"/gradio_api/call/{name}/{begun['event_id']}").text
    assert "log names it" not in text and "Traceback" not in text
    return text
