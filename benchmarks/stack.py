"""The stack under test: `model-serving up` as a user starts it, in a folder of its own, and its processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from scripts.stack.folder import API_KEY, DataFolder

START_TIMEOUT_S = 90.0


@dataclass(frozen=True, slots=True)
class Stack:
    """A running stack."""

    process: subprocess.Popen[bytes]
    url: str
    api_key: str
    data: Path

    @property
    def host_and_port(self) -> tuple[str, int]:
        """Where the gateway listens."""
        address = httpx.URL(self.url)
        return address.host, address.port or 80

    @property
    def auth(self) -> dict[str, str]:
        """The header that every request needs."""
        return {"Authorization": f"Bearer {self.api_key}"}

    def processes(self) -> list[psutil.Process]:
        """Every process of the stack, the supervisor included."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def find(self, module: str) -> list[psutil.Process]:
        """The processes that run `python -m <module>`, and their children."""
        mains = [p for p in self.processes() if p.cmdline()[1:3] == ["-m", module]]
        return [q for p in mains for q in (p, *p.children(recursive=True))]


@contextmanager
def running_stack(data: Path, repository: Path, **environment: str) -> Iterator[Stack]:
    """Start the stack on free ports, wait until its gateway is ready, and stop it in the end."""
    command = [
        sys.executable,
        "-m",
        "scripts.cli",
        "up",
        "--free-ports",
        "--data",
        str(data),
        "--model-repository",
        str(repository),
    ]
    log = (data.parent / f"{data.name}.log").open("wb")
    process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)
    try:
        yield _wait_ready(process, data)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        log.close()


def _wait_ready(process: subprocess.Popen[bytes], data: Path) -> Stack:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        stack = _find(process, data)
        if stack is not None:
            return stack
        time.sleep(0.2)
    raise RuntimeError(f"the stack did not start; see {data.name}.log")


def _find(process: subprocess.Popen[bytes], data: Path) -> Stack | None:
    folder = DataFolder(data)
    try:
        endpoints = folder.endpoints()
        if (
            endpoints is None
            or not httpx.get(f"{endpoints.gateway}/health", timeout=2).json()["models_loaded"]
        ):
            return None
        return Stack(process, endpoints.gateway, folder.read_secrets()[API_KEY], data)
    except (OSError, ValueError, KeyError, httpx.HTTPError):
        return None
