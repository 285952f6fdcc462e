"""What the embedded stack costs while nobody asks anything: CPU time of all its processes."""

import asyncio
import time
from dataclasses import dataclass

import psutil

from benchmarks.stack import Stack


@dataclass(frozen=True, slots=True)
class Idle:
    """Percent of one core, in all and by process; resident memory in bytes."""

    percent: float
    by_process: dict[str, float]
    memory_bytes: int


async def measure(stack: Stack, *, seconds: float) -> Idle:
    """Watch the stack's CPU time for `seconds`."""
    processes = stack.processes()
    before = {process.pid: _cpu_s(process) for process in processes}
    started_s = time.perf_counter()
    await asyncio.sleep(seconds)
    elapsed_s = time.perf_counter() - started_s
    used: dict[str, float] = {}
    for process in processes:
        name = _name(process)
        percent = 100 * (_cpu_s(process) - before[process.pid]) / elapsed_s
        used[name] = used.get(name, 0.0) + percent
    memory_bytes = sum(process.memory_info().rss for process in processes)
    return Idle(sum(used.values()), used, memory_bytes)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _name(process: psutil.Process) -> str:
    command = process.cmdline()
    return command[command.index("-m") + 1] if "-m" in command else process.name()
