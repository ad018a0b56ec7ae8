"""The app as a process of its own, for browser tests and benchmarks."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[2]
START_S = 90


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return bound.getsockname()[1]


def state_of(url: str) -> str | None:
    try:
        with urlopen(f"{url}healthz", timeout=5) as answer:
            return json.load(answer)["state"]
    except OSError:
        return None


@dataclass
class Server:
    """`python app.py --offline` with its own places, in a process that can be killed and started again."""

    folder: Path
    arguments: list[str]
    port: int = field(default_factory=free_port)
    threads: int = 1
    environment: dict[str, str] = field(default_factory=dict)
    """more variables for the process and its jobs"""
    process: subprocess.Popen | None = None

    def __enter__(self) -> Server:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *reason: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def start(self) -> None:
        """Returns when the model is ready."""
        command = [sys.executable, "app.py", "--port", str(self.port), "--offline", *self.arguments]
        own = {"GRADIO_TEMP_DIR": str(self.folder / "uploads"), "MEMSSL_HOME": str(self.home)}
        own |= {"OMP_NUM_THREADS": str(self.threads), "HF_HOME": str(self.folder / "hub")}
        environment = os.environ | own | self.environment
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        end = time.monotonic() + START_S
        while (state := state_of(self.url)) != "ready":
            if self.process.poll() is not None or state == "failed" or time.monotonic() > end:
                raise AssertionError(f"the server is {state} after {START_S} s:\n{(self.folder / 'log').read_text()}")
            time.sleep(0.2)

    def stop(self, how: int = signal.SIGINT) -> None:
        if self.process:
            self.process.send_signal(how)
            self.process.wait(20)
            self.process = None
