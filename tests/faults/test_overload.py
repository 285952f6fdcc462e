"""Ten times more than can be served: what is let in ends in time, the rest hears at once when to come."""

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass

import httpx
import pytest

from tests.faults.chaos_model import ANSWER, SLEEP
from tests.faults.stand import KEY, MODEL, Client, System, audit
from tests.servers import HOST

pytestmark = pytest.mark.e2e

ROW_S = 0.02
DEADLINE_MS = 2000
OVERLOAD = 10
LOAD_S = 8.0
MEASURE_S = 2.0
REFUSED_WITHIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer: its status, how long it took, and what it said of coming again."""

    status: int
    seconds: float
    retry_after: str | None


class Asker:
    """Asks over as many connections as it takes. A client library would itself be what is overloaded."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        row = {"model": MODEL, "inputs": {"x": [[0, SLEEP, ROW_S]]}, "timeout_ms": DEADLINE_MS}
        body = json.dumps(row).encode()
        head = f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._request = head.encode() + body

    async def ask(self) -> Answered:
        """Ask once."""
        started_s = time.monotonic()
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(HOST, self._port)
        writer.write(self._request)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        await reader.readexactly(int(headers["content-length"]))
        self._idle.append((reader, writer))
        seconds = time.monotonic() - started_s
        return Answered(int(lines[0].split()[1]), seconds, headers.get("retry-after"))

    def close(self) -> None:
        """Close every connection."""
        for _, writer in self._idle:
            writer.close()


async def capacity_per_s(asker: Asker) -> float:
    """Measure how many a second are answered to callers who each wait for their answer."""
    end_s = time.monotonic() + MEASURE_S
    answered = 0

    async def caller() -> None:
        nonlocal answered
        while time.monotonic() < end_s:
            assert (await asker.ask()).status == 200
            answered += 1

    await asyncio.gather(*(caller() for _ in range(8)))
    return answered / MEASURE_S


async def open_loop(asker: Asker, per_s: float) -> list[Answered]:
    """Ask at a fixed rate, whatever the answers are."""
    started_s, asked = time.monotonic(), list[asyncio.Task[Answered]]()
    while (elapsed_s := time.monotonic() - started_s) < LOAD_S:
        due = int(elapsed_s * per_s) - len(asked)
        asked += [asyncio.create_task(asker.ask()) for _ in range(due)]
        await asyncio.sleep(0.01)
    return list(await asyncio.gather(*asked))


def test_at_ten_times_the_load_the_work_done_stays_what_it_was(system: System, client: Client) -> None:
    system.install_model(max_batch_size=1)
    system.start("workers")
    client.until_served()
    rows = [[n, ANSWER, 0] for n in range(1, 51)]

    async def overload() -> tuple[float, list[Answered], str]:
        asker = Asker(httpx.URL(client.url).port or 0)
        try:
            capacity = await capacity_per_s(asker)
            load = asyncio.create_task(open_loop(asker, OVERLOAD * capacity))
            job = await asyncio.to_thread(client.submit, rows)
            return capacity, await load, job
        finally:
            asker.close()

    capacity, answers, job = asyncio.run(overload())
    by_status = Counter(answer.status for answer in answers)
    in_time = sum(answer.status == 200 and answer.seconds <= DEADLINE_MS / 1000 for answer in answers)
    refused = [answer for answer in answers if answer.status == 429]
    print(f"capacity {capacity:.0f}/s, in time {in_time / LOAD_S:.0f}/s, {by_status}")  # noqa: T201
    assert len(answers) > 0.8 * OVERLOAD * capacity * LOAD_S
    assert in_time / LOAD_S >= 0.8 * capacity, by_status
    assert set(by_status) <= {200, 429, 504}
    assert all(answer.retry_after and 1 <= int(answer.retry_after) <= 120 for answer in refused)
    slowest = sorted(answer.seconds for answer in refused)
    print(f"refused p50 {slowest[len(slowest) // 2]:.3f} s, p99 {slowest[len(slowest) * 99 // 100]:.3f} s")  # noqa: T201
    assert slowest[len(slowest) * 99 // 100] < REFUSED_WITHIN_S
    probe_s = time.monotonic()
    client.until_served(timeout_s=10)
    print(f"a probe was answered after {time.monotonic() - probe_s:.2f} s")  # noqa: T201
    assert client.ended(job)["state"] == "succeeded"
    found = audit(client, system, job, rows)
    assert found.clean, found
