"""A large job: 50,000 lines uploaded as JSONL, run, and read back, and what the gateway's memory does.

One message a line, each stored with an fsync before it counts as accepted, and one stored result a line.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from benchmarks.bare_engine import items_per_s
from benchmarks.stack import Stack

LINES = 50_000
TIMEOUT_S = 900
_LINE = json.dumps({"inputs": {"x": [[1.0, 2.0, 3.0, 4.0]]}}).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class BulkJob:
    """Times in seconds, memory in bytes."""

    lines: int
    upload_s: float
    total_s: float
    read_s: float
    read_lines: int
    gateway_growth_bytes: int
    bare_items_per_s: float

    @property
    def lines_per_s(self) -> float:
        """From the first byte sent to the last result stored."""
        return self.lines / self.total_s


async def measure(stack: Stack, repository: Path, *, lines: int = LINES) -> BulkJob:
    """Run one job of `lines` lines. Raises RuntimeError if a line is lost or fails."""
    gateways = stack.find("gateway")
    async with httpx.AsyncClient(base_url=stack.url, headers=stack.auth, timeout=TIMEOUT_S) as client:
        await _job(client, 500)  # warm, so that growth is the job's own
        before = sum(process.memory_info().rss for process in gateways)
        async with asyncio.TaskGroup() as tasks:
            stop = asyncio.Event()
            peak = tasks.create_task(_peak_memory(gateways, stop), name="memory")
            upload_s, total_s, job = await _job(client, lines)
            started_s = time.perf_counter()
            read = await _read(client, job)
            read_s = time.perf_counter() - started_s
            stop.set()
    bare = await asyncio.to_thread(items_per_s, repository, "identity", seconds=2, batch=64)
    return BulkJob(lines, upload_s, total_s, read_s, read, peak.result() - before, bare)


async def _job(client: httpx.AsyncClient, lines: int) -> tuple[float, float, str]:
    started_s = time.perf_counter()
    headers = {"Content-Type": "application/jsonl"}
    answer = await client.post("/v1/jobs?model=identity", content=_body(lines), headers=headers)
    answer.raise_for_status()
    upload_s, job = time.perf_counter() - started_s, answer.json()["id"]
    while True:
        status = (await client.get(f"/v1/jobs/{job}")).raise_for_status().json()
        if status["state"] in ("succeeded", "failed", "cancelled", "expired"):
            break
        await asyncio.sleep(0.25)
    if status["counts"]["succeeded"] != lines:
        raise RuntimeError(f"not every line succeeded: {status}")
    return upload_s, time.perf_counter() - started_s, job


async def _body(lines: int) -> AsyncIterator[bytes]:
    chunk = 500
    for at in range(0, lines, chunk):
        yield _LINE * min(chunk, lines - at)


async def _read(client: httpx.AsyncClient, job: str) -> int:
    headers = {"Accept": "application/jsonl"}
    async with client.stream("GET", f"/v1/jobs/{job}/results", headers=headers) as answer:
        answer.raise_for_status()
        return len({json.loads(line)["item"] async for line in answer.aiter_lines() if line})


async def _peak_memory(processes: list[psutil.Process], stop: asyncio.Event) -> int:
    peak = 0
    while not stop.is_set():
        peak = max(peak, sum(process.memory_info().rss for process in processes))
        try:
            async with asyncio.timeout(0.2):
                await stop.wait()
        except TimeoutError:
            continue
    return peak
