"""`model-serving dead`: requests that were given up, for admins."""

import re
from typing import Annotated, Any

import typer

from scripts.cli.calls import answer_of, calling
from scripts.cli.exits import EXIT_CODES, Exit, Stop
from scripts.cli.show import Output, show_dead, show_fields, show_json
from scripts.cli.target import DATA, AdminKey, Data, Target, Url, find_target

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_AGE = re.compile(r"([0-9]{1,9})([smhd])")

app = typer.Typer(no_args_is_help=True, help=f"Look after requests that were given up. {EXIT_CODES}")

Seq = Annotated[int, typer.Argument(min=1, help="Number of the dead letter.", show_default=False)]
Model = Annotated[str | None, typer.Option(help="Only those of this model.")]
OutputOption = Annotated[Output, typer.Option(help="How to write the answer.")]


@app.command("list")
def list_dead(
    *,
    model: Model = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, newest first.")] = 20,
    after: Annotated[int | None, typer.Option(min=1, help="Only those before this number.")] = None,
    output: OutputOption = Output.TABLE,
    url: Url = None,
    api_key: AdminKey = None,
    data: Data = DATA,
) -> None:
    """List what was given up and why, newest first."""
    asked = {"model": model, "limit": limit, "after": after}
    with calling(_target(url, api_key, data)) as client:
        page = answer_of(client.get("/v1/dead", params=_given(asked)))
    if output is Output.JSON:
        show_json(page)
    else:
        show_dead(page["letters"])


@app.command()
def show(
    seq: Seq,
    *,
    body: Annotated[bool, typer.Option("--body", help="Show the body too, as base64.")] = False,
    output: OutputOption = Output.TABLE,
    url: Url = None,
    api_key: AdminKey = None,
    data: Data = DATA,
) -> None:
    """Show one dead letter."""
    with calling(_target(url, api_key, data)) as client:
        params = {"body": "true"} if body else {}
        letter: dict[str, Any] = answer_of(client.get(f"/v1/dead/{seq}", params=params))
    if output is Output.JSON:
        show_json(letter)
        return
    headers = letter.pop("headers", None) or {}
    show_fields(letter | {f"header {name}": value for name, value in headers.items()})


@app.command()
def replay(
    seq: Seq,
    *,
    output: OutputOption = Output.TABLE,
    url: Url = None,
    api_key: AdminKey = None,
    data: Data = DATA,
) -> None:
    """Run a dead letter again, as a new job of its tenant. The letter stays until it is purged."""
    with calling(_target(url, api_key, data)) as client:
        _show(answer_of(client.post(f"/v1/dead/{seq}/replay")), output)


@app.command()
def purge(
    seq: Annotated[int | None, typer.Argument(min=1, help="Number of one dead letter.")] = None,
    *,
    model: Model = None,
    older_than: Annotated[
        str | None, typer.Option(help="Only those as old as this: 90s, 15m, 6h, 7d.", metavar="AGE")
    ] = None,
    output: OutputOption = Output.TABLE,
    url: Url = None,
    api_key: AdminKey = None,
    data: Data = DATA,
) -> None:
    """Delete one dead letter, or those of a model, or those that are old enough, or that are both."""
    if (seq is None) == (model is None and older_than is None):
        raise Stop(Exit.USAGE, "give either SEQ, or --model, --older-than or both")
    older_than_s = None if older_than is None else _seconds(older_than)
    with calling(_target(url, api_key, data)) as client:
        if seq is not None:
            answer = answer_of(client.delete(f"/v1/dead/{seq}"))
        else:
            params = _given({"model": model, "older_than_s": older_than_s})
            answer = answer_of(client.delete("/v1/dead", params=params))
    _show(answer, output)


def _target(url: str | None, api_key: str | None, data: Data) -> Target:
    return find_target(url, api_key, data, admin=True)


def _given(params: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def _seconds(age: str) -> int:
    parts = _AGE.fullmatch(age)
    if parts is None:
        raise Stop(Exit.USAGE, f"--older-than {age!r} is not an age such as 90s, 15m, 6h or 7d")
    return int(parts[1]) * _UNITS_S[parts[2]]


def _show(answer: dict[str, Any], output: Output) -> None:
    if output is Output.JSON:
        show_json(answer)
    else:
        show_fields(answer)
