"""The login by name and password: who is let in, everywhere alike, and what is asked of a browser."""

from __future__ import annotations

import base64
from concurrent.futures import Future

import pytest
from browser.answers import HERE
from fastapi import HTTPException
from fastapi.testclient import TestClient
from starlette.requests import Request

from memssl_core.errors import ConfigError
from ui.login import basic, login_of
from ui.page import build

NAME, PASSWORD = "ada", "pass:wörd"


def basic_header(secret: str, scheme: str = "Basic") -> dict[str, str]:
    return {"Authorization": f"{scheme} {base64.b64encode(secret.encode()).decode()}"}


def asked(headers: dict[str, str]) -> Request:
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    return Request({"type": "http", "headers": raw})


def test_only_name_and_password_together_are_let_in():
    login = basic(NAME, PASSWORD)
    for scheme in ("Basic", "basic"):
        assert login(asked(basic_header(f"{NAME}:{PASSWORD}", scheme))) == NAME
    hostile = [basic_header(secret) for secret in (f"{NAME}:", f":{PASSWORD}", f"Ada:{PASSWORD}", "", NAME, PASSWORD)]
    hostile += [{}, basic_header(f"{NAME}:{PASSWORD}", "Bearer"), basic_header(f"{NAME}:{PASSWORD} ")]
    odd = ("Basic", "Basic ", "Basic \xff\xff", "Basic YWRh!", "Basic " + "A" * 9999)
    hostile += [{"Authorization": told} for told in odd]
    for headers in hostile:
        with pytest.raises(HTTPException) as refused:
            login(asked(headers))
        assert refused.value.status_code == 401 and "Basic" in (refused.value.headers or {})["WWW-Authenticate"]


def test_it_comes_from_the_environment():
    assert login_of({}) is None
    login = login_of({"MEMSSL_LOGIN": f"{NAME}:{PASSWORD}"})
    assert login and login(asked(basic_header(f"{NAME}:{PASSWORD}"))) == NAME
    for wrong in ("", "ada", "ada:", ":secret", ":"):
        with pytest.raises(ConfigError, match="NAME:PASSWORD"):
            login_of({"MEMSSL_LOGIN": wrong})


def test_it_guards_gradio_and_our_routes_alike(ready: Future):
    with TestClient(build(ready, source="small", login=basic(NAME, PASSWORD)), base_url=HERE) as client:
        inside = basic_header(f"{NAME}:{PASSWORD}")
        for path in ("/", "/config", "/gradio_api/info", "/api/facts", "/api/models", "/gradio_api/mcp"):
            refused = client.get(path)
            assert refused.status_code == 401 and refused.headers["www-authenticate"].startswith("Basic"), path
            assert client.get(path, headers=inside).status_code == 200, path
        event = {"fn_index": 0, "data": [], "session_hash": "x"}
        for path in ("/gradio_api/run/predict", "/gradio_api/queue/join", "/gradio_api/upload", "/api/open"):
            assert client.post(path, json=event).status_code == 401, path
        for path in ("/healthz", "/ui/ui.css", "/ui/plotly.min.js"):
            assert client.get(path).status_code == 200, path
