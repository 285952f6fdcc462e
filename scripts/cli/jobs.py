"""`model-serving jobs`: work that is accepted now and answered later."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from schemas.jobs import JobState
from scripts.cli.calls import answer_of, calling, check
from scripts.cli.exits import EXIT_CODES, Exit, Stop
from scripts.cli.inputs import file_chunks, file_lines, raw_input_name
from scripts.cli.show import Output, show_job, show_jobs
from scripts.cli.target import DATA, ApiKey, Data, Url, find_target

JSONL = "application/jsonl"
_UPLOAD_SILENCE_S = 300.0  # the gateway answers when every line is stored
_FIRST_POLL_S, _SLOWEST_POLL_S = 0.1, 2.0

app = typer.Typer(no_args_is_help=True, help=f"Submit jobs and fetch their results. {EXIT_CODES}")

JobId = Annotated[str, typer.Argument(help="Id of the job.", show_default=False)]
OutputOption = Annotated[Output, typer.Option(help="How to write the answer.")]
Wait = Annotated[bool, typer.Option(help="Wait until the job has ended; exit with 4 if it did not succeed.")]


@app.command()
def submit(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    files: Annotated[list[Path] | None, typer.Argument(help="Files, each one item of the job.")] = None,
    *,
    jsonl: Annotated[
        Path | None, typer.Option(help='File of one item a line: {"inputs": ..., "parameters": ...}.')
    ] = None,
    wait: Wait = False,
    output: OutputOption = Output.TABLE,
    url: Url = None,
    api_key: ApiKey = None,
    data: Data = DATA,
) -> None:
    """Submit a job of one or many items."""
    paths = _readable([jsonl] if jsonl else files or [])
    if bool(files) == bool(jsonl):
        raise Stop(Exit.USAGE, "give either FILES or --jsonl")
    with calling(find_target(url, api_key, data), timeout_s=_UPLOAD_SILENCE_S) as client:
        if jsonl:
            job = _upload(client, model, file_chunks(jsonl), size_bytes=jsonl.stat().st_size)
        else:
            job = _upload(client, model, file_lines(paths, raw_input_name(client, model)), size_bytes=None)
        if wait:
            job = _wait_for(client, job["id"])
    show_job(job, output)
    _exit_by(job)


@app.command()
def status(
    job_id: JobId,
    *,
    wait: Wait = False,
    output: OutputOption = Output.TABLE,
    url: Url = None,
    api_key: ApiKey = None,
    data: Data = DATA,
) -> None:
    """Show where a job is."""
    with calling(find_target(url, api_key, data)) as client:
        job = _wait_for(client, job_id) if wait else answer_of(client.get(_path(job_id)))
    show_job(job, output)
    _exit_by(job)


@app.command()
def results(job_id: JobId, *, url: Url = None, api_key: ApiKey = None, data: Data = DATA) -> None:
    """Write the results of a job, a line of JSON each, as far as there are any."""
    with (
        calling(find_target(url, api_key, data)) as client,
        client.stream("GET", f"{_path(job_id)}/results", headers={"Accept": JSONL}) as response,
    ):
        check(response)
        for chunk in response.iter_bytes():
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()


@app.command()
def cancel(
    job_id: JobId,
    *,
    output: OutputOption = Output.TABLE,
    url: Url = None,
    api_key: ApiKey = None,
    data: Data = DATA,
) -> None:
    """Cancel what has not run yet of a job."""
    with calling(find_target(url, api_key, data)) as client:
        response = client.delete(_path(job_id))
        check(response)
        show_job(answer_of(response if response.content else client.get(_path(job_id))), output)


@app.command("list")
def list_jobs(
    *, output: OutputOption = Output.TABLE, url: Url = None, api_key: ApiKey = None, data: Data = DATA
) -> None:
    """List the jobs that are kept."""
    with calling(find_target(url, api_key, data)) as client:
        show_jobs(answer_of(client.get("/v1/jobs"))["jobs"], output)


def _path(job_id: str) -> str:
    if not job_id or not all(c.isascii() and (c.isalnum() or c in "_-") for c in job_id):
        raise Stop(Exit.USAGE, f"{job_id!r} is not the id of a job")
    return f"/v1/jobs/{job_id}"


def _readable(paths: Sequence[Path]) -> Sequence[Path]:
    for path in paths:
        if not path.is_file():
            raise Stop(Exit.USAGE, f"{path} is not a file")
    return paths


def _upload(
    client: httpx.Client, model: str, chunks: Iterator[bytes], *, size_bytes: int | None
) -> dict[str, Any]:
    """Post JSONL as it is read, with a progress bar on a terminal. Returns the job."""
    columns = (TextColumn("uploading"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    screen = Console(stderr=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        bar = progress.add_task("upload", total=size_bytes)
        response = client.post(
            "/v1/jobs",
            params={"model": model},
            content=_counted(chunks, lambda sent_bytes: progress.advance(bar, sent_bytes)),
            headers={"Content-Type": JSONL},
        )
    job: dict[str, Any] = answer_of(response)
    return job


def _counted(chunks: Iterator[bytes], advance: Callable[[int], None]) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        advance(len(chunk))


def _wait_for(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """Ask, ever more slowly, until the job has ended."""
    pause_s = _FIRST_POLL_S
    with Console(stderr=True).status("waiting") as spinner:
        while True:
            job: dict[str, Any] = answer_of(client.get(_path(job_id)))
            if JobState(job["state"]).final:
                return job
            counts = job["counts"]
            ended = counts["total"] - counts.get("pending", 0)
            spinner.update(f"{job['state']}: {ended} of {counts['total']} items ended")
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _SLOWEST_POLL_S)


def _exit_by(job: dict[str, Any]) -> None:
    state = JobState(job["state"])
    if state.final and state is not JobState.SUCCEEDED:
        raise typer.Exit(Exit.JOB_FAILED)
