"""Real servers for tests: NATS with the shipped configuration, Valkey, and an S3 that lives in memory.

Each listens on free ports of loopback, keeps its data in a folder of its own, ends with the test run,
and is known to be the process that was started, not another one that had the port.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, Self

import httpx
import psutil
import pytest
import redis
from pydantic import SecretStr

from infra.connections.settings import NatsSettings, RedisSettings
from scripts.stack.orphans import die_with_parent
from scripts.stack.servers import (
    NATS_PASSWORDS,
    MissingProgram,
    NatsOptions,
    nats_command,
    nats_environment,
    valkey_command,
)

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
HOST = "127.0.0.1"


def free_port() -> int:
    """Ask the kernel for a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def missing(why: str) -> NoReturn:
    """Skip the test at a desk; fail it in CI, where everything must be there."""
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


class Server:
    """One server process. `start` returns when it answers; `restart` keeps its ports and its data."""

    name: str
    check_errors: tuple[type[Exception], ...] = (OSError, httpx.HTTPError)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {}

    def answers(self) -> bool:
        """Say whether the process that we started answers; may raise one of `check_errors`."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        """The process id. Fails if the server does not run."""
        assert self.process is not None, f"{self.name} is not running"
        return self.process.pid

    @property
    def log(self) -> str:
        """What the server wrote so far, over all its starts."""
        return (self.folder / f"{self.name}.log").read_text()

    def start(self) -> None:
        """Start it and wait until it answers. Skips or fails the test if it is not installed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            command = self.command()
        except MissingProgram as error:
            missing(str(error))
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **self.environment()},
                stdout=log,
                stderr=log,
                cwd=self.folder,
                preexec_fn=die_with_parent(),  # noqa: PLW1509 - the tests start servers from one thread
            )
        wait_until(self._ready, f"{self.name} to answer")

    def stop(self, *, kill: bool = False) -> None:
        """Stop it, in order or by SIGKILL, and wait for its end. Nothing happens if it does not run."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(STOP_TIMEOUT_S)
        self.process = None

    def restart(self, *, kill: bool = False) -> None:
        """Stop it and start it again on the same ports and data."""
        self.stop(kill=kill)
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"{self.name} ended with {self.process.returncode}:\n{self.log[-2000:]}")
        try:
            return self.answers()
        except self.check_errors:
            return False


class NatsServer(Server):
    """A NATS server with `infra/nats/nats-server.conf`. It has no streams until somebody declares them."""

    name = "nats-server"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.passwords = {who: secrets.token_urlsafe(12) for who in NATS_PASSWORDS}
        self.server_name = f"test-{secrets.token_hex(6)}"
        self.port, self.monitoring_port = free_port(), free_port()

    @property
    def monitoring_url(self) -> str:
        """Where `/varz`, `/jsz` and the like are."""
        return f"http://{HOST}:{self.monitoring_port}"

    def url(self, role: str) -> str:
        """Give the address with the credentials of `role` in it."""
        return f"nats://{role}:{self.passwords[role]}@{HOST}:{self.port}"

    def settings(self, role: str) -> NatsSettings:
        """Give what a service with this role would read from its environment."""
        password = SecretStr(self.passwords[role])
        return NatsSettings(url=f"nats://{HOST}:{self.port}", user=role, password=password)

    def command(self) -> list[str]:
        return nats_command()

    def environment(self) -> dict[str, str]:
        return nats_environment(
            NatsOptions(
                name=self.server_name,
                port=self.port,
                monitoring_port=self.monitoring_port,
                store=self.folder / "store",
                passwords=self.passwords,
            )
        )

    def answers(self) -> bool:
        with socket.create_connection((HOST, self.port), timeout=1):
            pass
        seen = httpx.get(f"{self.monitoring_url}/varz", timeout=1).json()
        return bool(seen["server_name"] == self.server_name)


class ValkeyServer(Server):
    """A Valkey server with `infra/valkey/valkey.conf`."""

    name = "valkey-server"
    check_errors = (OSError, redis.RedisError)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.password = secrets.token_urlsafe(12)
        self.port = free_port()

    @property
    def url(self) -> str:
        """The address with the password in it."""
        return f"redis://:{self.password}@{HOST}:{self.port}/0"

    def settings(self) -> RedisSettings:
        """Give what a service would read from its environment."""
        return RedisSettings(url=SecretStr(self.url))

    def command(self) -> list[str]:
        return valkey_command(self.folder, port=self.port, password=self.password)

    def answers(self) -> bool:
        with redis.Redis.from_url(self.url, socket_timeout=1) as client:
            return bool(client.info("server")["process_id"] == self.pid)


class S3Server(Server):
    """An S3 server (moto) that forgets everything when it stops. Any credentials will do."""

    name = "s3-server"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port = free_port()

    @property
    def endpoint(self) -> str:
        """The address to give as S3 endpoint."""
        return f"http://{HOST}:{self.port}"

    def command(self) -> list[str]:
        program = Path(sys.executable).parent / "moto_server"
        if not program.is_file():
            raise MissingProgram("moto_server is missing: pip install 'moto[server]'")
        return [str(program), "-H", HOST, "-p", str(self.port)]

    def answers(self) -> bool:
        httpx.get(self.endpoint, timeout=5)
        listening = psutil.Process(self.pid).net_connections(kind="tcp")
        return any(c.laddr.port == self.port and c.status == psutil.CONN_LISTEN for c in listening)


def wait_until(happened: Callable[[], bool], what: str, *, timeout_s: float = START_TIMEOUT_S) -> None:
    """Return as soon as `happened()` is true. Raises AssertionError naming `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not happened():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.02)


def streams_of(server: NatsServer) -> list[str]:
    """List the streams that the server holds, by way of its monitoring port."""
    answer = httpx.get(f"{server.monitoring_url}/jsz?streams=true", timeout=5)
    accounts = json.loads(answer.content).get("account_details", [])
    return sorted(s["name"] for account in accounts for s in account.get("stream_detail") or [])
