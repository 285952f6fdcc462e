"""Workers that die, freeze and meet poison: nothing accepted is lost, and nobody else pays for it."""

import signal
import threading

import httpx
import pytest

from tests.faults.chaos_model import ANSWER, KILL, KILL_ONCE, RAISE, SLEEP
from tests.faults.stand import MAX_STARTS, Client, System, audit
from tests.servers import wait_until

pytestmark = pytest.mark.e2e


def keep_alive(system: System, stop: threading.Event) -> threading.Thread:
    """Start workers anew as they die, as a supervisor does, until told to stop."""

    def supervise() -> None:
        worker = system.start("workers")
        while not stop.wait(0.1):
            if worker.process.poll() is not None:
                worker = system.start("workers")

    thread = threading.Thread(target=supervise, name="supervisor")
    thread.start()
    return thread


def test_poison_in_a_batch_of_64_fails_alone(system: System, client: Client) -> None:
    rows = [[n, KILL if n == 30 else ANSWER, 0] for n in range(1, 65)]
    stop = threading.Event()
    supervisor = keep_alive(system, stop)
    try:
        client.until_served()
        job = client.submit(rows)
        ended = client.ended(job, timeout_s=90)
    finally:
        stop.set()
        supervisor.join()
    assert ended["counts"]["succeeded"] == 63
    record = client.results(job)[29]
    assert (record["state"], record["error"]["code"]) == ("failed", "poison")
    assert system.starts()[30] == MAX_STARTS
    assert max(system.starts().values()) <= MAX_STARTS


def test_a_row_that_raises_fails_alone(system: System, client: Client) -> None:
    system.start("workers")
    client.until_served()
    job = client.submit([[n, RAISE if n == 3 else ANSWER, 0] for n in range(1, 17)])
    assert client.ended(job)["counts"]["succeeded"] == 15
    assert client.results(job)[2]["error"]["code"] == "model_error"


def test_a_worker_killed_in_the_middle_of_a_batch_loses_nothing(system: System, client: Client) -> None:
    system.install_model(max_batch_size=8)
    first, _ = system.start("workers"), system.start("workers")
    client.until_served()
    rows = [[n, SLEEP, 0.01] for n in range(1, 401)]
    job = client.submit(rows)
    wait_until(lambda: client.status(job)["counts"]["succeeded"] > 20, "some answers")
    first.kill()
    assert client.ended(job)["state"] == "succeeded"
    found = audit(client, system, job, rows)
    assert found.clean, found


def test_a_caller_who_waits_is_answered_on_the_same_connection(system: System, client: Client) -> None:
    worker = system.start("workers")
    client.until_served()
    answers: list[httpx.Response] = []
    caller = threading.Thread(target=lambda: answers.append(client.predict([[7, KILL_ONCE, 0]])))
    caller.start()
    worker.process.wait(20)  # the row ended it
    system.start("workers")
    caller.join(30)
    assert [answer.status_code for answer in answers] == [200]
    assert system.starts()[7] == 2


def test_a_worker_frozen_past_its_lease_changes_nothing_when_it_wakes(system: System, client: Client) -> None:
    zombie = system.start("workers")
    client.until_served()
    job = client.submit([[1, SLEEP, 0.5], [2, ANSWER, 0]])
    wait_until(lambda: 1 in system.starts(), "the worker to be at it")
    zombie.signal(signal.SIGSTOP)
    system.start("workers")
    assert client.ended(job)["state"] == "succeeded"
    before = client.results(job)
    zombie.signal(signal.SIGCONT)
    client.until_served()
    assert zombie.stop() == 0
    assert client.results(job) == before
    assert max(system.starts().values()) <= MAX_STARTS


def test_a_rolling_restart_fails_nobody_and_starts_nothing_twice(system: System, client: Client) -> None:
    old = system.start("workers")
    client.until_served()
    statuses: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        number = 1000
        while not stop.is_set():
            number += 1
            statuses.append(client.predict([[number, SLEEP, 0.01]]).status_code)

    caller = threading.Thread(target=ask)
    caller.start()
    wait_until(lambda: len(statuses) > 20, "some answers")
    new = system.start("workers")
    wait_until(lambda: b"event=ready" in new.log.read_bytes(), "the new worker to be ready")
    assert old.stop() == 0
    seen = len(statuses)
    wait_until(lambda: len(statuses) > seen + 20, "answers from the new worker")
    stop.set()
    caller.join(30)
    assert set(statuses) == {200}
    assert max(system.starts().values()) == 1


def test_the_attempts_at_an_item_are_told_with_their_workers(system: System, client: Client) -> None:
    first = system.start("workers")
    client.until_served()
    job = client.submit([[1, KILL_ONCE, 0], [2, ANSWER, 0]])
    first.process.wait(20)  # the row ended it
    assert client.http.get(f"/v1/jobs/{job}/items/0").json()["state"] == "queued"
    system.start("workers")
    assert client.ended(job)["state"] == "succeeded"
    found = client.http.get(f"/v1/jobs/{job}/items/0").json()
    assert (found["item"], found["state"], found["attempts"]) == (0, "succeeded", 2)
    assert found["outputs"][0]["data"][0][0] == 1
    (started,) = found["history"]
    assert (started["attempt"], started["event"]) == (2, "started")
    assert started["worker"] == found["worker"]
    for missing in (f"{job}/items/2", f"{'0' * 32}/items/0"):
        assert client.http.get(f"/v1/jobs/{missing}").status_code == 404
