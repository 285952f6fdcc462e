"""How answers look to people: tables where that helps, JSON where it does not."""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.table import Column, Table

_WIDTH_IN_FILES = 120
_JOB_WIDTH = 32  # an id that is cut short can not be copied


class Output(StrEnum):
    """What a command writes on stdout."""

    TABLE = "table"
    JSON = "json"


def console() -> Console:
    """A console on stdout. Names and labels come from others, so nothing in them is markup."""
    width = None if sys.stdout.isatty() else _WIDTH_IN_FILES
    return Console(width=width, highlight=False, markup=False, emoji=False)


def show_json(value: Any) -> None:
    """Write JSON, indented."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def show_answer(answer: Mapping[str, Any], output: Output) -> None:
    """Write what a model answered: labels and scores as a table, anything else as JSON."""
    labels = label_rows(answer)
    if output is Output.JSON or labels is None:
        show_json(answer)
        return
    table = Table("label", "score")
    for row in labels:
        table.add_row(*row, style="bold" if row is labels[0] else "")
    times = [f"{name.removesuffix('_ms')} {ms:.1f} ms" for name, ms in answer.get("timing", {}).items()]
    screen = console()
    screen.print(f"{answer['model']}, version {answer['version']}")
    screen.print(table)
    screen.print(", ".join([*times, f"request {answer['id']}"]))


def label_rows(answer: Mapping[str, Any]) -> list[tuple[str, str]] | None:
    """List label and score of a classification of one item, best first; None if the answer is none."""
    outputs = {output["name"]: output["data"] for output in answer.get("outputs", ())}
    if outputs.keys() != {"label", "score"} or len(outputs["label"]) != 1:
        return None
    pairs = zip(outputs["label"][0], outputs["score"][0], strict=True)
    return [(str(label), score if isinstance(score, str) else f"{score:.4f}") for label, score in pairs]


def show_job(job: Mapping[str, Any], output: Output) -> None:
    """Write one job and how many of its items ended how."""
    if output is Output.JSON:
        show_json(job)
    else:
        show_jobs([job], output)


def show_jobs(jobs: Sequence[Mapping[str, Any]], output: Output) -> None:
    """Write jobs, one a row."""
    if output is Output.JSON:
        show_json(jobs)
        return
    table = Table(Column("job", no_wrap=True, min_width=_JOB_WIDTH), "model", "state", "items", "", "created")
    for job in jobs:
        counts = job["counts"]
        created = _when(job["created_at"])
        table.add_row(job["id"], job["model"], job["state"], str(counts["total"]), _tally(counts), created)
    console().print(table)


def show_models(models: Sequence[Mapping[str, Any]], output: Output) -> None:
    """Write the models and what they take and give."""
    if output is Output.JSON:
        show_json(models)
        return
    table = Table("model", "version", "format", "ready", "workers", "takes", "gives")
    for model in models:
        table.add_row(
            model["name"],
            str(model["version"]),
            model["format"],
            "yes" if model["ready"] else "no",
            str(model["workers"]),
            *(_specs(model["signature"][side]) for side in ("inputs", "outputs")),
        )
    console().print(table)


def show_dead(letters: Sequence[Mapping[str, Any]]) -> None:
    """Write dead letters, one a row."""
    table = Table("seq", "model", "reason", "tenant", "bytes", Column("given up", no_wrap=True))
    for letter in letters:
        table.add_row(
            str(letter["seq"]),
            letter["model"] or letter["subject"],
            letter["reason"],
            letter.get("tenant") or "",
            str(letter["size_bytes"]),
            _when(letter["stored_at"]),
        )
    console().print(table)


def show_fields(fields: Mapping[str, Any]) -> None:
    """Write the parts of one thing, one a row; those that are not there are left out."""
    table = Table(show_header=False)
    for name, value in fields.items():
        if value is not None:
            table.add_row(name, _when(value) if name.endswith("_at") else str(value))
    console().print(table)


def _specs(specs: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(f"{s['name']}: {s['dtype']} {'x'.join(_size(n) for n in s['shape'])}" for s in specs)


def _size(size: int) -> str:
    return "?" if size < 0 else str(size)


def _tally(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {state}" for state, n in counts.items() if n and state != "total")


def _when(unix_s: float | None) -> str:
    if unix_s is None:  # a job that was published on NATS directly
        return ""
    return datetime.fromtimestamp(unix_s, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
