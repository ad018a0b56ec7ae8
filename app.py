"""Open the explorer in a browser: `python app.py`, then visit the address that it prints."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import sys
import threading
import webbrowser
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from memssl_core.errors import ConfigError, MemsslError
from ui.roots import declared

if TYPE_CHECKING:
    from ui.context import Training

FIRST_PORT, LAST_PORT = 7860, 7959
VISITORS_LIMITS = {"runs": 20, "hours": 24, "gigabytes": 20}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Look inside a model with a memory, in the browser."""

    model: str = "embedded"
    """what to open first: embedded, bundle:FOLDER, hub:OWNER/NAME, timm:NAME, random:NAME[@SEED] or run:NAME"""
    host: str | None = None
    """address to listen on; default 127.0.0.1, on a Space 0.0.0.0"""
    port: int | None = None
    """port to listen on, this one or none; default $GRADIO_SERVER_PORT, $PORT, or the first free from 7860 on"""
    public: bool = False
    """for visitors from elsewhere: listen on all addresses unless --host names one, and offer no jobs and no folders"""
    offline: bool = False
    """never ask another machine for anything"""
    device: str = "auto"
    """cpu, cuda, mps or auto"""
    root: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=DIR"), tyro.conf.UseAppendAction] = ()
    """a folder of pictures that may be chosen on the page, under a name; may be given several times"""
    runs: Path | None = None
    """where training runs lie; default $MEMSSL_HOME/runs, or ./runs"""
    open: Annotated[bool, tyro.conf.arg(name="open")] = False
    """open the page in a browser"""
    train: bool = False
    """offer training to visitors from elsewhere, who log in as $MEMSSL_LOGIN says, NAME:PASSWORD; here it always is"""
    at_once: int = 1
    """training runs at a time; the others wait for their turn"""
    max_runs: int | None = None
    """training runs that are kept; default 20 for visitors from elsewhere, here no limit, as for the next two"""
    max_hours: float | None = None
    """that a training run may work; default 24"""
    max_gigabytes: float | None = None
    """that training runs may take in all; default 20"""


def main(arguments: Arguments) -> None:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    if arguments.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    roots = declared(arguments.root)
    server_socket = bind(arguments)

    import uvicorn

    from ui.context import open_source
    from ui.login import VARIABLE, login_of
    from ui.page import build

    public = arguments.public or not is_loopback(server_socket)
    login = login_of(os.environ)
    os.environ.pop(VARIABLE, None)  # no job needs to know
    opening: Future = Future()
    app = build(
        opening,
        source=arguments.model,
        public=public,
        offline=arguments.offline,
        login=login,
        roots=roots,
        runs=arguments.runs,
        training=training_of(arguments, public=public, has_login=login is not None),
    )

    def open_model() -> None:
        try:
            opening.set_result(open_source(arguments.model, arguments.device))
            print("Ready.", file=sys.stderr, flush=True)
        except BaseException as reason:
            opening.set_exception(reason)
            told = reason if isinstance(reason, MemsslError) else f"{type(reason).__name__}: {reason}"
            print(f"The model could not be opened. {told}", file=sys.stderr, flush=True)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            url = address(server_socket)
            print(f"Open {url} (Ctrl-C ends it).", flush=True)
            threading.Thread(target=open_model, daemon=True).start()  # torch, once the socket answers
            if arguments.open:
                threading.Thread(target=webbrowser.open, args=[url], daemon=True).start()

    config = uvicorn.Config(app, log_level="warning", proxy_headers=True, timeout_graceful_shutdown=2)
    with contextlib.suppress(KeyboardInterrupt):
        Server(config).run(sockets=[server_socket])


def training_of(arguments: Arguments, *, public: bool, has_login: bool) -> Training | None:
    """What of training is offered. ConfigError for visitors from elsewhere without a login, or an impossible limit."""
    from ui.context import Training

    limits = {"runs": arguments.max_runs, "hours": arguments.max_hours, "gigabytes": arguments.max_gigabytes}
    given = {"at-once": arguments.at_once, **{f"max-{name}": value for name, value in limits.items()}}
    for name, value in given.items():
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"--{name} is {value}; it must be a number above 0.")
    if not public:
        return Training(at_once=arguments.at_once, **limits)  # type: ignore[arg-type]
    if not arguments.train:
        return None
    if not has_login:
        raise ConfigError(
            "--train lets visitors from elsewhere start training, so it needs a login: "
            "set MEMSSL_LOGIN=NAME:PASSWORD, or leave --train out."
        )
    own = {name: VISITORS_LIMITS[name] if value is None else value for name, value in limits.items()}
    return Training(at_once=arguments.at_once, **own)  # type: ignore[arg-type]


def bind(arguments: Arguments) -> socket.socket:
    """A bound socket. ConfigError, one sentence, if the port asked for, or every port of the range, is taken."""
    host = chosen_host(arguments)
    asked = arguments.port or next(
        (int(value) for name in ("GRADIO_SERVER_PORT", "PORT") if (value := os.environ.get(name, "")).isdecimal()), None
    )
    ports = [asked] if asked is not None else range(FIRST_PORT, LAST_PORT + 1)
    reason = ""
    for port in ports:
        if not 0 < port < 65_536:
            raise ConfigError(f"Port {port} does not exist; choose one from 1 to 65535.")
        try:
            return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as problem:
            reason = problem.strerror or str(problem)
    where = f"Port {asked} at {host}" if asked is not None else f"Every port from {FIRST_PORT} to {LAST_PORT} at {host}"
    raise ConfigError(f"{where} cannot be used ({reason}); choose another one with --port.")


def chosen_host(arguments: Arguments) -> str:
    """The address to listen on."""
    everywhere = arguments.public or os.environ.get("SYSTEM") == "spaces"
    return arguments.host or os.environ.get("GRADIO_SERVER_NAME") or ("0.0.0.0" if everywhere else "127.0.0.1")


def is_loopback(bound: socket.socket) -> bool:
    return ipaddress.ip_address(bound.getsockname()[0]).is_loopback


def address(bound: socket.socket) -> str:
    """The address to visit: that of this machine when the socket listens on all."""
    listening, port = bound.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listening, str(listening))
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments))
    except MemsslError as problem:
        print(problem, file=sys.stderr)
        sys.exit(1)
