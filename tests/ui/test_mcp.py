"""The named endpoints as MCP tools: what is listed, what is answered, and who is turned away."""

from __future__ import annotations

import base64
import io
import json
import select
import socket
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from urllib.parse import quote

import anyio
import httpx
import numpy as np
import pytest
from browser.answers import HERE
from browser.pictures import photo, upload
from fastapi import FastAPI
from fastapi.testclient import TestClient
from gradio.utils import get_upload_folder
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult

from ui.page import build

MCP = "/gradio_api/mcp"
ACCEPT = {"Accept": "application/json, text/event-stream"}
PNG = upload(photo(64, 48), "a.png", "PNG")["buffer"]
DATA_URL = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"


@pytest.fixture
def app(ready: Future, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    return build(ready, source="small")


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, base_url=HERE) as client:
        yield client


def ask(client: TestClient, method: str, headers: dict[str, str] | None = None, **params: object) -> dict:
    """One question without a session: `{result}` or `{error}`."""
    question = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    answer = client.post(MCP, json=question, headers=ACCEPT | (headers or {}))
    assert answer.status_code == 200, answer.text
    return json.loads(answer.text.partition("data: ")[2])


def call(client: TestClient, name: str, **arguments: object) -> list:
    """What a tool answers; text that is JSON is read."""
    result = ask(client, "tools/call", name=name, arguments=arguments)["result"]
    assert not result["isError"], result
    texts = [part["text"] for part in result["content"]]
    return [text if text.startswith("http") else json.loads(text) for text in texts]


def refusal(client: TestClient, name: str, **arguments: object) -> str:
    result = ask(client, "tools/call", name=name, arguments=arguments)["result"]
    assert result["isError"], result
    (said,) = result["content"]
    return said["text"]


def test_a_client_of_the_protocol_is_served(app: FastAPI):
    async def visit() -> tuple[list[str], CallToolResult]:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport) as http,
            streamable_http_client(f"{HERE}{MCP}/", http_client=http) as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            names = [tool.name for tool in (await session.list_tools()).tools]
            return names, await session.call_tool("model_card", {})

    names, card = anyio.run(visit)
    assert "model_card" in names and not card.isError
    assert json.loads(card.content[0].text)["memory_slots"] == 64


def test_the_tools_are_the_named_endpoints(client: TestClient):
    named = client.get("/gradio_api/info").json()["named_endpoints"]
    tools = ask(client, "tools/list")["result"]["tools"]
    assert {f"/{tool['name']}" for tool in tools} == set(named)
    for tool in tools:
        assert tool["description"], tool
        for name, part in tool["inputSchema"]["properties"].items():
            if name.startswith("image"):
                assert part["type"] == "string" and "data: URL" in part["description"] and len(part) == 2
    assert ask(client, "resources/list")["result"]["resources"] == []
    assert ask(client, "resources/templates/list")["result"]["resourceTemplates"] == []
    assert ask(client, "prompts/list")["result"]["prompts"] == []
    assert {tool["name"] for tool in client.get(f"{MCP}/schema").json()} == {tool["name"] for tool in tools}
    assert client.get("/config").json()["mcp_server"] is True


def test_a_picture_comes_as_bytes_or_as_an_upload(client: TestClient):
    (path,) = client.post("/gradio_api/upload", files={"files": ("a.png", PNG)}).json()
    answers = [
        call(client, "neighbours", image=image, k=3)
        for image in (
            DATA_URL,
            path,
            f"{HERE}/gradio_api/file={path}",
            f"https://else.where/gradio_api/file={quote(path)}",
        )
    ]
    ((rows,), *others) = answers
    assert len(rows) == 3 and set(rows[0]) == {"id", "score", "image_id", "uri", "class_name", "step", "box"}
    assert others == [[rows]] * 3


def test_a_file_is_answered_by_its_address(client: TestClient):
    address, summary = call(client, "attention", image=DATA_URL, layer=-2)
    assert address.startswith(f"{HERE}/gradio_api/file=") and summary["layers"] == [1]
    saved = np.load(io.BytesIO(client.get(address).content))
    np.testing.assert_allclose(saved["rows"].sum(-1), 1, rtol=1e-5)


def test_a_second_picture_may_be_left_out(client: TestClient):
    for given in ({}, {"image_b": DATA_URL}):
        sheet, numbers = call(client, "pca", image=DATA_URL, size=64, **given)
        assert client.get(sheet).content.startswith(b"\x89PNG")
        assert ("grid_b" in np.load(io.BytesIO(client.get(numbers).content))) == bool(given)
    assert "did not arrive here" in refusal(client, "pca", image=DATA_URL, image_b="/etc/passwd")


def test_attention_heads_and_two_models_are_compared(client: TestClient):
    (table,) = call(client, "heads", image=DATA_URL)
    assert np.shape(table["kl"]) == np.shape(table["kept"]) == np.shape(table["moved"]) == (3, 3)
    (told,) = call(client, "compare", image=DATA_URL, other="small", k=5)
    assert told["memories"]["share"] == 1 and told["maps"]["overlap"] == pytest.approx(1)


@pytest.mark.parametrize("image", ["/etc/passwd", "file:///etc/passwd", "../../app.py", __file__, ""])
def test_no_file_of_the_server_is_read(client: TestClient, image: str):
    for given in (image, f"{HERE}/gradio_api/file={image}"):
        assert "did not arrive here" in refusal(client, "neighbours", image=given)
    assert "is not of type 'string'" in refusal(client, "neighbours", image={"path": image})
    assert not [path for path in Path(get_upload_folder()).rglob("*") if path.is_file()]


def test_no_address_is_called(client: TestClient):
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        host = f"127.0.0.1:{elsewhere.getsockname()[1]}"
        assert "did not arrive here" in refusal(client, "neighbours", image=f"http://{host}/a.png")
        for headers in ({"Host": host}, {"X-Forwarded-Host": host}):
            for name, arguments in (("neighbours", {"image": DATA_URL}), ("attention", {"image": DATA_URL})):
                answer = ask(client, "tools/call", headers, name=name, arguments=arguments)
                assert not answer["result"]["isError"], answer
            for method, params in (("resources/read", {"uri": "a://b"}), ("prompts/get", {"name": "a"})):
                assert (
                    ask(client, method, headers, **params)["error"]["message"]
                    == "Only tools without a queue are served here."
                )
        assert select.select([elsewhere], [], [], 0)[0] == []


def test_mistakes_are_told_in_a_sentence(client: TestClient):
    for name, arguments, said in (
        ("neighbours", {"image": "data:image/png;base64,abc"}, "not base64"),
        ("neighbours", {"image": "data:text/plain;base64,aGVsbG8="}, "not a picture that can be read"),
        ("neighbours", {"image": DATA_URL, "k": 10**9}, "ask for at most"),
        (
            "attention",
            {"image": DATA_URL, "query": ";".join("1" * 99)},
            "99 queries were asked for; ask for at most 64",
        ),
        ("neighbours", {}, "'image' is a required property"),
        ("model_card", {"model": "timm:resnet18.a1_in1k"}, "not served here"),
        ("nobody", {}, "Unknown tool"),
    ):
        told = refusal(client, name, **arguments)
        assert said in told and "Traceback" not in told and get_upload_folder() not in told and "\n" not in told
    too_long = client.post(MCP, json={"image": "A" * 5_000_000}, headers=ACCEPT)
    assert too_long.status_code == 413


def test_the_guard_of_the_page_stands_here_too(ready: Future):
    question = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    with TestClient(
        build(ready, source="small", login=lambda request: request.headers.get("user")), base_url=HERE
    ) as client:
        for path in (MCP, f"{MCP}/", f"{MCP}/http", f"{MCP}/schema"):
            assert client.get(path).status_code == 401, path
            assert client.get(path, headers={"user": "ada"}).status_code == 200, path
        for path in (MCP, f"{MCP}/", f"{MCP}/http", f"{MCP}/http/"):
            assert client.post(path, json=question, headers=ACCEPT).status_code == 401, path
            assert client.post(path, json=question, headers=ACCEPT | {"user": "ada"}).status_code == 200, path
        for path in (f"{MCP}/sse", f"{MCP}/messages/"):  # Gradio's older way in
            assert client.post(path, json=question, headers=ACCEPT | {"user": "ada"}).status_code == 404, path


def test_other_pages_and_other_names_of_this_machine_are_refused(client: TestClient, ready: Future):
    question = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    for headers, status in (
        ({"Host": "evil.example"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Content-Type": "text/plain"}, 415),
    ):
        assert client.post(MCP, content=json.dumps(question), headers=ACCEPT | headers).status_code == status, headers
    with TestClient(build(ready, source="small", public=True), base_url="https://anyone.example") as public:
        assert ask(public, "tools/list")["result"]["tools"]


def test_the_environment_opens_no_other_way_in(ready: Future, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GRADIO_MCP_SERVER", "true")
    with TestClient(build(ready, source="small", login=lambda request: None), base_url=HERE) as client:
        for path in (MCP, f"{MCP}/", f"{MCP}/schema", f"{MCP}/sse"):
            assert client.get(path).status_code == 401, path
