"""A login by name and password, which a browser asks for itself (HTTP Basic)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Mapping

from fastapi import HTTPException, Request

from memssl_core.errors import ConfigError
from ui.guard import LOG_IN

VARIABLE = "MEMSSL_LOGIN"
ASK = {"WWW-Authenticate": 'Basic realm="MaSSL", charset="UTF-8"'}


def login_of(environment: Mapping[str, str]) -> Callable[[Request], str] | None:
    """The login that MEMSSL_LOGIN=NAME:PASSWORD asks for; None if it is not set. ConfigError for another form."""
    told = environment.get(VARIABLE)
    if told is None:
        return None
    name, _, password = told.partition(":")
    if not name or not password:
        raise ConfigError(f"{VARIABLE} is not of the form NAME:PASSWORD; set both, or unset it.")
    return basic(name, password)


def basic(name: str, password: str) -> Callable[[Request], str]:
    """A login that gives the visitor's name, and answers everyone else with 401, upon which a browser asks."""
    expected = _digest(f"{name}:{password}".encode("utf-8", "surrogateescape"))

    def login(request: Request) -> str:
        scheme, _, told = request.headers.get("authorization", "").partition(" ")
        try:
            given = base64.b64decode(told, validate=True) if scheme.lower() == "basic" else b""
        except (binascii.Error, ValueError):
            given = b""
        if not hmac.compare_digest(_digest(given), expected):
            raise HTTPException(401, LOG_IN, headers=ASK)
        return name

    return login


def _digest(secret: bytes) -> bytes:
    """Of one length whatever is given, so that the time of the comparison tells nothing."""
    return hashlib.sha256(secret).digest()
