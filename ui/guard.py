"""Who may ask: a login if there is one, this machine's own address, and, to change something, the page itself."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from urllib.parse import urlsplit

from fastapi import HTTPException, Request

Login = Callable[[Request], str | None | Awaitable[str | None]]
LOG_IN = "Log in to see this."


def make_guard(login: Login | None, public: bool) -> Callable[[Request], Awaitable[None]]:
    """The one dependency of all our routes.

    It asks `login`; a server for this machine alone also refuses other host names, under which a foreign page could
    pretend to be ours; and what is not read but changed must be asked for by our page, as JSON.
    """

    async def guard(request: Request) -> None:
        visitor = login(request) if login else "anyone"
        if isawaitable(visitor):
            visitor = await visitor
        if visitor is None:
            raise HTTPException(401, LOG_IN)
        if not public and not is_this_machine(request.url.hostname or ""):
            raise HTTPException(403, "This server answers on this machine alone; open it as http://127.0.0.1.")
        if request.method not in ("GET", "HEAD"):
            refuse_foreign(request)

    return guard


def refuse_foreign(request: Request) -> None:
    """403 for a request that another page has sent, 415 for one that a plain form could have sent."""
    told = request.headers
    if site := told.get("sec-fetch-site"):  # the browser itself says so, whatever a proxy has done to the host
        is_ours = site == "same-origin"
    else:
        hosts = told.get("host"), told.get("x-forwarded-host")
        is_ours = "origin" not in told or urlsplit(told["origin"]).netloc in hosts
    if not is_ours:
        raise HTTPException(403, "Only the page itself may ask for this.")
    if told.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "Send JSON.")


def make_owner_only(public: bool) -> Callable[[], None]:
    """A dependency for what reads folders and starts jobs: 403 where visitors come from elsewhere."""

    def owner_only() -> None:
        if public:
            raise HTTPException(403, "This is offered on the server's own machine only.")

    return owner_only


def is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
