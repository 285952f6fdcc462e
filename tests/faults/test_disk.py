"""A broker whose disk is full: what is accepted is stored, and it is done once there is room again."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.faults.chaos_model import ANSWER
from tests.faults.stand import Client, System
from tests.servers import NatsServer, ValkeyServer, missing

pytestmark = pytest.mark.e2e

DISK_BYTES = 48 << 20
BALLAST_BYTES = 16 << 20
ROWS_OF_ONE_JOB = 4000  # about 96 KB of tensor, well under the inline limit


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own, nearly all of it free."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        missing("mounting a tmpfs is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def system(tmp_path: Path, small_disk: Path) -> Iterator[System]:
    """A system whose broker keeps its streams on the small disk, with limits that are larger than it."""
    (small_disk / "ballast").write_bytes(bytes(BALLAST_BYTES))
    with NatsServer(small_disk / "nats") as nats, ValkeyServer(tmp_path / "valkey") as valkey:
        running = System(tmp_path, nats, valkey)
        running.environment = {"STREAM_MAX_BYTES": str(4 << 30), "STREAM_RESULTS_MAX_BYTES": str(4 << 30)}
        running.install_model(max_batch_size=ROWS_OF_ONE_JOB)
        running.start("scheduler")
        try:
            yield running
        finally:
            running.stop()


def large_job(client: Client, number: int) -> httpx.Response:
    rows = [[number, ANSWER, 0], *[[0, ANSWER, 0]] * (ROWS_OF_ONE_JOB - 1)]
    return client.http.post("/v1/jobs", json={"model": "chaos", "inputs": {"x": rows}})


def test_a_full_disk_refuses_and_loses_nothing(system: System, client: Client, small_disk: Path) -> None:
    worker = system.start("workers")
    client.until_served()
    assert worker.stop() == 0  # so that the queue only grows
    accepted: list[httpx.Response] = []
    refused: list[httpx.Response] = []
    for number in range(1, 1000):
        answer = large_job(client, number)
        (accepted if answer.status_code == 202 else refused).append(answer)
        if len(refused) >= 3:
            break
    assert accepted
    for answer in refused:
        assert answer.status_code in (429, 503)
        assert 1 <= int(answer.headers["retry-after"]) <= 120
    (small_disk / "ballast").unlink()
    system.nats.restart(kill=True)
    system.start("workers")
    client.until_served(timeout_s=60)
    states = [client.ended(answer.json()["id"])["state"] for answer in accepted]
    assert set(states) == {"succeeded"}
