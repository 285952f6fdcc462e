"""`model-serving up` as a process, with real servers: what it starts, keeps, and leaves behind."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import nats
import psutil
import pytest
import redis

from tests.servers import missing, wait_until

pytestmark = pytest.mark.integration

STOP_TIMEOUT_S = 30.0
SERVICES = ["gateway", "worker", "scheduler"]
SERVERS = ["valkey", "nats"]


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    from scripts.stack.servers import MissingProgram, find_nats_server, find_valkey_server  # noqa: PLC0415

    try:
        find_nats_server(), find_valkey_server()
    except MissingProgram as error:
        missing(str(error))


class Up:
    """One `up`, its output, and every process that it ever had, so that none is left after the test."""

    def __init__(self, data: Path, *arguments: str) -> None:
        self.data = data
        self._log = data.with_suffix(f".{len(list(data.parent.glob('*.log')))}.log")
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.stack_driver", str(data), *arguments],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._seen: dict[int, psutil.Process] = {}

    @property
    def output(self) -> str:
        return self._log.read_text()

    @property
    def endpoints(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.data / "endpoints.json").read_text())
        return found

    @property
    def secrets(self) -> dict[str, str]:
        lines = (self.data / "secrets.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def until(self, text: str, times: int = 1) -> None:
        """Wait until it wrote `text` so often; fail at once if it ended without."""

        def written() -> bool:
            ended = self.process.poll() is not None
            if self.output.count(text) >= times:
                return True
            assert not ended, f"ended with {self.process.returncode} without {text!r}:\n{self.output}"
            return False

        wait_until(written, f"{text!r} from up")

    def until_ready(self) -> None:
        self.until("up          | ready: ")
        self.family()

    def family(self) -> list[psutil.Process]:
        """List all processes that it started, and those that they started."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            self._seen.setdefault(child.pid, child)
        return list(self._seen.values())

    def child(self, role: str) -> psutil.Process:
        """Find the process that runs a tiny service."""
        return next(p for p in self.family() if lives(p) and f" {role} " in " ".join(p.cmdline()))

    def signal(self, which: signal.Signals) -> None:
        self.family()
        self.process.send_signal(which)

    def wait(self) -> int:
        return self.process.wait(STOP_TIMEOUT_S)

    def until_nobody_is_left(self) -> None:
        """Wait for the end of every process that it ever had."""
        wait_until(lambda: not any(map(lives, self._seen.values())), "the end of every process")

    def clean(self) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
            self.process.wait()
        for process in self._seen.values():
            if lives(process):
                process.kill()


def lives(process: psutil.Process) -> bool:
    """Say whether a process runs; one that ended and was not waited for does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Starter:
    """Starts `up`s on a folder and cleans all of them away."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.started: list[Up] = []

    def __call__(self, *arguments: str, data: Path | None = None) -> Up:
        self.started.append(Up(data or self.data, *arguments))
        return self.started[-1]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    starter = Starter(tmp_path / "data")
    yield starter
    for up in starter.started:
        up.clean()


def test_everything_answers_on_the_announced_ports(start: Starter) -> None:
    up = start("--workers", "2")
    up.until_ready()
    assert httpx.get(up.endpoints["gateway"]).status_code == 200
    assert httpx.get(up.endpoints["nats_monitoring"] + "/varz").json()["server_name"] == "model-serving"
    with redis.Redis.from_url(up.endpoints["redis"], password=up.secrets["VALKEY_PASSWORD"]) as client:
        assert client.ping()
    for name in ("nats", "valkey", "scheduler", "worker-1", "worker-2", "gateway"):
        assert re.search(rf"up +\| {name} is ready after", up.output), up.output


def test_two_stacks_run_side_by_side(start: Starter, tmp_path: Path) -> None:
    ups = [start(data=tmp_path / name) for name in ("one", "other")]
    for up in ups:
        up.until_ready()
    assert not set(ups[0].endpoints.values()) & set(ups[1].endpoints.values())


def test_a_second_up_on_the_same_folder_is_refused(start: Starter) -> None:
    first = start()
    first.until_ready()
    second = start()
    assert second.wait() == 1
    assert f"in use by another 'model-serving up' (process {first.process.pid})" in second.output
    assert httpx.get(first.endpoints["gateway"]).status_code == 200


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_all_in_order_and_leaves_nobody(start: Starter, which: signal.Signals) -> None:
    up = start()
    up.until_ready()
    up.signal(which)
    assert up.wait() == 0, up.output
    assert re.findall(r"up +\| (\w+) stopped", up.output) == SERVICES + SERVERS
    up.until_nobody_is_left()
    assert not (up.data / "endpoints.json").exists()


def test_a_signal_during_the_start_leaves_nobody(start: Starter) -> None:
    up = start()
    up.until("nats is ready")
    up.signal(signal.SIGINT)
    assert up.wait() == 0, up.output
    up.until_nobody_is_left()


def test_kill_9_leaves_nobody_and_the_folder_can_be_used_again(start: Starter) -> None:
    up = start()
    up.until_ready()
    assert len(up.family()) >= len(SERVICES) * 2 + len(SERVERS)  # the services' own children too
    up.signal(signal.SIGKILL)
    up.wait()
    up.until_nobody_is_left()
    start().until_ready()


def test_kill_9_of_the_whole_session_leaves_nobody(start: Starter) -> None:
    up = start()
    up.until_ready()
    os.killpg(up.process.pid, signal.SIGKILL)
    up.wait()
    up.until_nobody_is_left()


def test_a_child_that_dies_is_reported_and_started_again(start: Starter) -> None:
    up = start()
    up.until_ready()
    dead = up.child("worker")
    grandchild = dead.children()[0]
    dead.kill()
    up.until("worker ended with SIGKILL, starting it again in 0.01 s")
    up.until("worker is ready", times=2)
    assert up.child("worker").pid != dead.pid
    wait_until(lambda: not lives(grandchild), "the end of what the dead worker had started")


def test_nats_that_dies_comes_back_with_its_data(start: Starter) -> None:
    up = start()
    up.until_ready()
    next(p for p in up.family() if p.name() == "nats-server").kill()
    up.until("nats is ready", times=2)
    assert httpx.get(up.endpoints["nats_monitoring"] + "/healthz").status_code == 200


def test_a_child_that_never_gets_ready_ends_everything(start: Starter) -> None:
    up = start("--fault", "worker=dying")
    assert up.wait() == 1
    assert up.output.count("worker can not start") == 3
    assert "worker ended 3 times before it was ready, the last time with exit code 1" in up.output
    up.until_nobody_is_left()


def test_a_program_that_is_missing_ends_everything(start: Starter) -> None:
    up = start("--fault", "gateway=missing")
    assert up.wait() == 1
    assert "gateway can not be started" in up.output


def test_a_deaf_child_is_killed_after_its_grace(start: Starter) -> None:
    up = start("--fault", "gateway=deaf")
    up.until_ready()
    up.signal(signal.SIGTERM)
    assert up.wait() == 0
    assert "gateway did not stop within 1 s and was killed" in up.output
    up.until_nobody_is_left()


def test_a_second_signal_forces(start: Starter) -> None:
    up = start("--fault", "gateway=deaf")
    up.until_ready()
    up.signal(signal.SIGINT)
    up.until("asked to stop gateway")
    up.signal(signal.SIGINT)
    assert up.wait() == 130
    up.until_nobody_is_left()


async def test_data_and_secrets_survive_a_restart(start: Starter) -> None:
    up = start()
    up.until_ready()
    secrets = up.secrets
    await _write(up)
    up.signal(signal.SIGTERM)
    assert up.wait() == 0
    again = start()
    again.until_ready()
    assert again.secrets == secrets
    assert await _read(again) == (b"kept", b"kept")


def test_secrets_are_for_their_owner_only(start: Starter) -> None:
    up = start()
    up.until_ready()
    for name in ("secrets.env", "valkey/valkey.conf"):
        assert stat.S_IMODE((up.data / name).stat().st_mode) == 0o600
    command_lines = " ".join(word for p in up.family() for word in p.cmdline())
    assert not any(secret in command_lines for secret in up.secrets.values())


async def _write(up: Up) -> None:
    client = await nats.connect(_scheduler_url(up), inbox_prefix="_INBOX_scheduler")
    await client.jetstream().add_stream(name="DEAD", subjects=["dead.*"])
    await client.jetstream().publish("dead.m1", b"kept")
    await client.close()
    with redis.Redis.from_url(up.endpoints["redis"], password=up.secrets["VALKEY_PASSWORD"]) as valkey:
        valkey.set("key", "kept")


async def _read(up: Up) -> tuple[bytes | None, object]:
    client = await nats.connect(_scheduler_url(up), inbox_prefix="_INBOX_scheduler")
    message = await client.jetstream().get_last_msg("DEAD", "dead.m1")
    await client.close()
    with redis.Redis.from_url(up.endpoints["redis"], password=up.secrets["VALKEY_PASSWORD"]) as valkey:
        return message.data, valkey.get("key")


def _scheduler_url(up: Up) -> str:
    address = up.endpoints["nats"].removeprefix("nats://")
    return f"nats://scheduler:{up.secrets['NATS_SCHEDULER_PASSWORD']}@{address}"
