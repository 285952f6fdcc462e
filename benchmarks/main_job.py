"""Run every benchmark of the main job in one go and write a table and a plot.

usage: python -m benchmarks.main_job [--quick] [--only PART,...] [--models FOLDER] [--out FOLDER]
"""

import argparse
import os
import platform
import shutil
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil
import uvloop

from benchmarks import bulk_job, idle, queue_cost, saturation
from benchmarks.plot import plot_turns
from benchmarks.stack import Stack, running_stack
from scripts.models.content_type import install_content_type_model
from scripts.models.identity import install_identity_model

PARTS = ("queue", "saturation", "bulk", "idle")
MB = 1 << 20


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    measured: str
    wanted: str
    met: bool

    def __str__(self) -> str:
        return f"| {self.what} | {self.measured} | {self.wanted} | {'yes' if self.met else 'NO'} |"


def main() -> None:
    """Parse the options, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the time; for trying changes")
    parser.add_argument("--only", default=",".join(PARTS), help="comma-separated parts")
    parser.add_argument("--models", type=Path, help="repository with efficientnet-lite0 (scripts/examples)")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        rows = uvloop.run(_run(Path(scratch), options))
    table = _table(rows)
    (options.out / "table.md").write_text(table)
    print(table)


async def _run(scratch: Path, options: argparse.Namespace) -> list[Row]:
    repository = _repository(scratch, options.models)
    parts, rows = options.only.split(","), []
    scale = 0.1 if options.quick else 1.0
    with running_stack(scratch / "stack", repository) as stack:
        if "idle" in parts:
            rows += _idle_rows(await idle.measure(stack, seconds=max(5.0, 60 * scale)))
        if "queue" in parts:
            rows += await _queue_rows(stack, scale, options.out)
        if "saturation" in parts:
            rows += await _saturation_rows(stack, repository, scale)
        if "bulk" in parts:
            lines = int(bulk_job.LINES * scale)
            rows += _bulk_rows(await bulk_job.measure(stack, repository, lines=lines))
    return rows


def _repository(scratch: Path, examples: Path | None) -> Path:
    """Lay out the models: content-type, identity, and EfficientNet where it was exported."""
    repository = scratch / "models"
    repository.mkdir()
    install_content_type_model(repository)
    install_identity_model(repository)
    if examples is not None:
        shutil.copytree(examples / saturation.MODEL, repository / saturation.MODEL)
        shutil.copytree(examples.parent / "samples", scratch / "samples")
    return repository


async def _queue_rows(stack: Stack, scale: float, out: Path) -> list[Row]:
    turns = max(3, round(7 * scale))
    one = await queue_cost.measure(stack, 1, turns=turns, seconds=max(1.0, 5 * scale))
    many = await queue_cost.measure(stack, 32, turns=turns, seconds=max(1.0, 5 * scale))
    plot_turns([one, many], out / "queue_cost.png")
    full = statistics.median(turn.per_s for turn, _ in many.turns)
    full_ms = statistics.median(turn.quantile_ms(0.5) for turn, _ in one.turns)
    return [
        Row(
            "queue, 32 connections",
            f"{many.throughput_ratio:.2f} of the gateway alone ({full:.0f}/s; {many.unexpected} errors)",
            ">= 0.5",
            many.throughput_ratio >= 0.5 and not many.unexpected,
        ),
        Row(
            "queue, 1 connection",
            f"adds {one.added_ms:.2f} ms at the median ({full_ms:.2f} ms in all; {one.unexpected} errors)",
            "<= 1.5 ms",
            one.added_ms <= 1.5 and not one.unexpected,
        ),
    ]


async def _saturation_rows(stack: Stack, repository: Path, scale: float) -> list[Row]:
    if not (repository / saturation.MODEL).is_dir():
        return [Row("EfficientNet, 64 callers", "not run: give --models", ">= 0.9", met=False)]
    found = await saturation.measure(
        stack, repository, turns=max(2, round(5 * scale)), seconds=max(6.0, 20 * scale)
    )
    queued = statistics.median(per_s for per_s, _ in found.turns)
    details = f"{queued:.0f} items/s; {found.unexpected} errors"
    measured = f"{found.ratio:.2f} of the bare engine at batch {found.best_batch} ({details})"
    met = found.ratio >= 0.9 and not found.unexpected
    return [Row("EfficientNet, 64 callers", measured, ">= 0.9", met)]


def _bulk_rows(found: bulk_job.BulkJob) -> list[Row]:
    share = found.lines_per_s / found.bare_items_per_s
    times = f"upload {found.upload_s:.1f} s, read back {found.read_s:.1f} s"
    return [
        Row(
            f"job of {found.lines:,} lines",
            f"{found.lines_per_s:.0f} lines/s ({times}); {share:.3f} of the bare identity engine",
            "every line succeeds",
            found.read_lines == found.lines,
        ),
        Row(
            "gateway memory in that job",
            f"grows by {found.gateway_growth_bytes / MB:.0f} MB",
            "< 150 MB",
            found.gateway_growth_bytes < 150 * MB,
        ),
    ]


def _idle_rows(found: idle.Idle) -> list[Row]:
    by_process = ", ".join(f"{name} {percent:.1f}" for name, percent in sorted(found.by_process.items()))
    return [Row("idle stack", f"{found.percent:.1f} % of a core ({by_process})", "< 3 %", found.percent < 3)]


def _table(rows: list[Row]) -> str:
    machine = f"{os.cpu_count()} cores, {psutil.virtual_memory().total >> 30} GiB, {_cpu_model()}"
    versions = f"Python {platform.python_version()}, Linux {platform.release()}"
    lines = [f"{machine}; {versions}", "", "| what | measured | wanted | met |", "|---|---|---|---|"]
    return "\n".join([*lines, *map(str, rows), ""])


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
