"""Several processes on this machine, with the environment that torchrun would give them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def start(argv: list[str], count: int) -> list[subprocess.Popen]:
    """`python ARGV` in `count` processes of one group."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, *argv],
            cwd=ROOT,
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for rank in range(count)
    ]


def ends(processes: list[subprocess.Popen], timeout_s: float = 120) -> list[tuple[int, str, str]]:
    """(exit status, output, errors) of each."""
    told = [(process.communicate(timeout=timeout_s), process) for process in processes]
    return [(process.returncode, out, errors) for (out, errors), process in told]
