"""A broker that restarts, is killed or freezes: refused honestly while it is away, and nothing lost."""

import os
import signal
import time
from collections.abc import Callable

import httpx
import pytest

from tests.faults.chaos_model import ANSWER, SLEEP
from tests.faults.stand import Client, System, audit
from tests.servers import wait_until

pytestmark = pytest.mark.e2e

REFUSED_WITHIN_S = 3.0
BACK_WITHIN_S = 10.0
FROZEN_S = 60.0


@pytest.mark.parametrize("kill", [False, True], ids=["TERM", "KILL"])
def test_a_broker_restarted_under_load_loses_nothing(system: System, client: Client, kill: bool) -> None:
    worker = system.start("workers")
    client.until_served()
    rows = [[n, SLEEP, 0.002] for n in range(1, 1501)]
    job = client.submit(rows)
    wait_until(lambda: client.status(job)["counts"]["succeeded"] > 50, "some answers")
    system.nats.restart(kill=kill)
    client.until_served(timeout_s=BACK_WITHIN_S)
    assert client.ended(job)["state"] == "succeeded"
    found = audit(client, system, job, rows)
    assert found.clean, found
    assert worker.process.poll() is None
    assert client.service.process.poll() is None


def test_while_the_broker_is_down_callers_are_refused_at_once(system: System, client: Client) -> None:
    system.start("workers")
    client.until_served()
    system.nats.stop(kill=True)
    wait_until(lambda: client.http.get("/health/ready").status_code == 503, "the gateway to notice")
    attempts: list[Callable[[], httpx.Response]] = [
        lambda: client.predict([[1, ANSWER, 0]]),
        lambda: client.http.get(f"/v1/jobs/{'0' * 32}"),
    ]
    for attempt in attempts:
        started_s = time.monotonic()
        answer = attempt()
        assert time.monotonic() - started_s < REFUSED_WITHIN_S
        assert answer.status_code == 503
        assert 1 <= int(answer.headers["retry-after"]) <= 120
    system.nats.start()
    client.until_served(timeout_s=BACK_WITHIN_S)


def test_a_broker_frozen_for_a_minute_costs_callers_seconds(system: System, client: Client) -> None:
    worker = system.start("workers")
    client.until_served()
    rows = [[n, SLEEP, 0.002] for n in range(1, 501)]
    job = client.submit(rows)
    wait_until(lambda: client.status(job)["counts"]["succeeded"] > 10, "some answers")
    os.kill(system.nats.pid, signal.SIGSTOP)
    try:
        until_s = time.monotonic() + FROZEN_S
        while time.monotonic() < until_s:
            started_s = time.monotonic()
            assert client.predict([[0, ANSWER, 0]]).status_code == 503
            assert time.monotonic() - started_s < REFUSED_WITHIN_S
    finally:
        os.kill(system.nats.pid, signal.SIGCONT)
    client.until_served(timeout_s=BACK_WITHIN_S)
    assert client.ended(job)["state"] == "succeeded"
    found = audit(client, system, job, rows)
    assert found.clean, found
    assert (worker.process.poll(), client.service.process.poll()) == (None, None)


def test_a_broker_restarted_twenty_times_loses_nothing(system: System, client: Client) -> None:
    worker = system.start("workers")
    client.until_served()
    accepted = []
    for restart in range(20):
        rows = [[restart * 100 + n, SLEEP, 0.005] for n in range(1, 101)]
        accepted.append((client.submit(rows), rows))
        system.nats.restart(kill=restart % 2 == 1)
        client.until_served(timeout_s=BACK_WITHIN_S)
    for job, rows in accepted:
        assert client.ended(job)["state"] == "succeeded"
        found = audit(client, system, job, rows)
        assert found.clean, found
    assert (worker.process.poll(), client.service.process.poll()) == (None, None)


def test_a_caller_who_waits_survives_a_broker_restart(system: System, client: Client) -> None:
    system.start("workers")
    client.until_served()
    job = client.submit([[5, SLEEP, 1.0]])
    wait_until(lambda: 5 in system.starts(), "the row to be started")
    system.nats.restart(kill=True)
    assert client.ended(job)["state"] == "succeeded"


def test_a_lost_redis_costs_no_request(system: System, client: Client) -> None:
    system.start("workers")
    client.until_served()
    system.valkey.stop(kill=True)
    statuses = {client.predict([[n, ANSWER, 0]]).status_code for n in range(200)}
    assert statuses == {200}
    assert isinstance(client.http.get("/health").json()["models_loaded"], list)
    with pytest.raises(httpx.HTTPStatusError):
        client.http.post("/v1/predict", json={"model": "nosuch", "inputs": {}}).raise_for_status()
