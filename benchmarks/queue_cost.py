"""What the queue costs: the full path against the same gateway that answers without it.

The two run side by side and are loaded in turns, so noise of the machine meets both; the ratio of each
pair of turns is what counts, and its median is reported.
"""

import asyncio
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from benchmarks.load import Load, Measured, run_load
from benchmarks.stack import Stack
from tests.servers import free_port

BODY = json.dumps({"model": "identity", "inputs": {"x": [[1.0, 2.0, 3.0, 4.0]]}}).encode()


@dataclass(frozen=True, slots=True)
class QueueCost:
    """Turns of one number of connections: pairs of (full path, without the queue)."""

    connections: int
    turns: list[tuple[Measured, Measured]]

    @property
    def throughput_ratio(self) -> float:
        """Requests/s of the full path as a share of those without the queue; median of the turns."""
        return statistics.median(full.per_s / bare.per_s for full, bare in self.turns)

    @property
    def added_ms(self) -> float:
        """What the queue adds to the median latency; median of the turns."""
        return statistics.median(full.quantile_ms(0.5) - bare.quantile_ms(0.5) for full, bare in self.turns)

    @property
    def unexpected(self) -> int:
        """Answers that were not the expected one."""
        return sum(full.unexpected + bare.unexpected for full, bare in self.turns)


@contextmanager
def gateway_without_queue(stack: Stack) -> Iterator[int]:
    """Start the same gateway with a dispatcher that answers at once; yields its port."""
    gateway = stack.find("gateway")[0]
    port = free_port()
    environment = {**gateway.environ(), "GATEWAY_PORT": str(port)}
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.echo_gateway"], env=environment)
    try:
        _wait_ready(process, port)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def _wait_ready(process: subprocess.Popen[bytes], port: int) -> None:
    transport = httpx.HTTPTransport(retries=8)  # connection refused is tried again, ever more slowly
    with httpx.Client(transport=transport, timeout=20) as client:
        answer = client.get(f"http://127.0.0.1:{port}/health/ready")
    if process.poll() is not None or answer.status_code != httpx.codes.OK:
        raise RuntimeError("the gateway without the queue did not start")


async def measure(stack: Stack, connections: int, *, turns: int, seconds: float) -> QueueCost:
    """Load both gateways in turns."""
    host, port = stack.host_and_port
    headers = {**stack.auth, "Content-Type": "application/json"}
    with gateway_without_queue(stack) as bare_port:
        full = Load(host, port, "/v1/predict", BODY, headers)
        bare = Load(host, bare_port, "/v1/predict", BODY, headers)
        for load in (full, bare):
            await run_load(load, connections=connections, seconds=1.0)  # warm both
        found = []
        for _ in range(turns):
            without = await run_load(bare, connections=connections, seconds=seconds)
            found.append((await run_load(full, connections=connections, seconds=seconds), without))
            await asyncio.sleep(0.2)
        return QueueCost(connections, found)
