"""The gateway as a process: how it starts, refuses to start, drains and ends; and its locked routes."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.integration.gateway_stand import KEY, SIGNING_KEY, Stand, standing
from tests.servers import NatsServer, ValkeyServer, free_port, wait_until

pytestmark = pytest.mark.integration

Standing = Callable[..., AbstractAsyncContextManager[Stand]]
OPEN = {"/health", "/health/live", "/health/ready"}
ONE = {"model": "echo", "inputs": {"x": [[1, 2]]}}


@pytest.fixture
def stand(nats_server: NatsServer, valkey_server: ValkeyServer, tmp_path: Path) -> Standing:
    return partial(standing, nats_server, valkey_server, tmp_path)


@pytest.fixture
def environment(nats_server: NatsServer, valkey_server: ValkeyServer, tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "API_KEYS": f"acme:{KEY}",
        "TENANT_SIGNING_KEY": SIGNING_KEY.get_secret_value(),
        "GATEWAY_PORT": str(free_port()),
        "NATS_URL": f"nats://127.0.0.1:{nats_server.port}",
        "NATS_USER": "gateway",
        "NATS_PASSWORD": nats_server.passwords["gateway"],
        "REDIS_URL": valkey_server.url,
        "BLOB_STORE": f"file://{tmp_path / 'blobs'}",
    }


class Process:
    """`python -m gateway`, and how to ask it something."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.log = log
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{environment['GATEWAY_PORT']}",
            headers={"authorization": f"Bearer {KEY}"},
            timeout=20,
        )
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gateway"], env=environment, stdout=output, stderr=output
            )

    def ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.http.get("/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def __enter__(self) -> "Process":
        wait_until(self.ready, "the gateway to be ready")
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.process.terminate()
        self.process.wait(20)


def run(environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def every_route(s: Stand) -> Iterator[tuple[str, str]]:
    for route in s.front.app.routes:
        for method in route.methods:
            yield method, re.sub(r"\{[^}]*\}", "x" * 16, route.path)


async def test_every_route_but_health_needs_a_key(stand: Standing) -> None:
    async with stand(open_metrics=False) as s:
        routes = list(every_route(s))
        assert len(routes) > 20
        guesses = [
            "/",
            "/admin",
            "/debug",
            "/docs",
            "/openapi.json",
            "/schema/",
            "/v1",
            "/health/x",
            "/HEALTH",
        ]
        for method, path in [*routes, *(("GET", guess) for guess in guesses)]:
            for headers in ({"authorization": ""}, {"authorization": f"Bearer {KEY}x"}):
                answer = await s.client.request(method, path, headers=headers)
                if path in OPEN:
                    assert answer.status_code != 401
                else:
                    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized"), path
                    assert answer.headers["www-authenticate"].startswith("Bearer")
                    assert answer.headers["x-request-id"] == answer.json()["request_id"]


async def test_metrics_are_open_on_loopback_and_the_schema_is_not(stand: Standing) -> None:
    async with stand() as s:
        nobody = {"authorization": ""}
        assert (await s.client.get("/metrics", headers=nobody)).status_code == 200
        assert (await s.client.get("/schema", headers=nobody)).status_code == 401


async def test_a_key_in_the_query_is_no_key(stand: Standing) -> None:
    async with stand() as s:
        answer = await s.client.get(f"/v1/models?key={KEY}&api_key={KEY}", headers={"authorization": ""})
    assert answer.status_code == 401


async def test_without_auth_everybody_is_the_public_tenant(stand: Standing) -> None:
    async with stand(auth="off") as s:
        answer = await s.client.post("/v1/predict", json=ONE, headers={"authorization": ""})
        assert answer.status_code == 200
        assert s.seen[0][0].tenant == "public"


def test_check_says_what_answers(environment: dict[str, str]) -> None:
    checked = run(environment, "--check")
    assert checked.returncode == 0, checked.stderr
    assert [line.partition(":")[0] for line in checked.stdout.splitlines()] == ["settings", "nats", "redis"]


def test_check_says_what_does_not_answer(environment: dict[str, str]) -> None:
    checked = run(environment | {"REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}, "--check")
    assert checked.returncode == 1
    assert "nats: ok" in checked.stdout
    assert "redis: Unavailable" in checked.stdout


def test_a_wrong_setting_ends_it_with_2_and_its_name(environment: dict[str, str]) -> None:
    ended = run(environment | {"GATEWAY_PROCESSES": "many"})
    assert ended.returncode == 2
    assert ended.stderr.startswith("gateway: GATEWAY_PROCESSES: ")


def test_a_public_address_without_keys_ends_it_with_2(environment: dict[str, str]) -> None:
    ended = run(environment | {"AUTH": "off", "GATEWAY_HOST": "0.0.0.0"})  # noqa: S104 - that is the point
    assert (ended.returncode, "AUTH=off is refused" in ended.stderr) == (2, True)


def test_a_tenant_without_a_signing_key_ends_it_with_2_and_the_name(environment: dict[str, str]) -> None:
    del environment["TENANT_SIGNING_KEY"]
    ended = run(environment)
    assert ended.returncode == 2
    assert ended.stderr.startswith("gateway: TENANT_SIGNING_KEY: ")
    assert "'acme'" in ended.stderr
    assert run(environment | {"API_KEYS": KEY}, "--check").returncode == 0


async def test_sigterm_lets_what_is_under_way_finish_and_exits_with_0(
    stand: Standing, environment: dict[str, str], tmp_path: Path
) -> None:
    async with stand() as s:
        s.gate = asyncio.Event()
        process = Process(environment, tmp_path / "log")
        await asyncio.to_thread(process.__enter__)
        async with httpx.AsyncClient(base_url=process.http.base_url, headers=process.http.headers) as client:
            asking = asyncio.create_task(client.post("/v1/predict", json=ONE, timeout=20))
            await s.until_seen(1)
            process.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(wait_until, lambda: _refuses(process), "the gateway to stop listening")
            s.gate.set()
            answer = await asking
        assert answer.status_code == 200, answer.text
        assert await asyncio.to_thread(process.process.wait, 20) == 0
        process.http.close()
        assert "Traceback" not in process.log.read_text()


def _refuses(process: Process) -> bool:
    try:
        httpx.get(f"{process.http.base_url}/health/live", timeout=5)
    except httpx.TransportError:  # refused, or accepted in its last moment and reset
        return True
    return False


def test_several_processes_share_a_port_and_count_together(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with Process(environment | {"GATEWAY_PROCESSES": "2"}, tmp_path / "log") as gateway:
        for _ in range(20):
            httpx.get(f"{gateway.http.base_url}/v1/models", headers=gateway.http.headers, timeout=10)
        text = gateway.http.get("/metrics").text
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(30) == 0
    counted = re.search(r'model_serving_requests_total\{[^}]*route="/v1/models"\} (\d+)', text)
    assert counted is not None
    assert int(counted[1]) == 20


def test_without_nats_it_does_not_start(environment: dict[str, str]) -> None:
    ended = run(
        environment | {"NATS_URL": f"nats://127.0.0.1:{free_port()}", "GATEWAY_START_TIMEOUT_S": "0.5"}
    )
    assert ended.returncode == 3
