"""`model-serving predict`: one question to a model, and its answer."""

import sys
from pathlib import Path
from typing import Annotated

import httpx
import typer

from scripts.cli.calls import ANSWER_TIMEOUT_S, answer_of, calling
from scripts.cli.exits import EXIT_CODES, Exit, Stop
from scripts.cli.inputs import Body, json_body, parse_inputs, raw_body, raw_input_name, with_timeout
from scripts.cli.show import Output, show_answer
from scripts.cli.target import DATA, ApiKey, Data, Url, find_target

_STDIN = Path("-")
_SPARE_S = 5.0


def predict(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    file: Annotated[Path | None, typer.Argument(help="File to send as it is; - is stdin.")] = None,
    *,
    json_text: Annotated[
        str | None,
        typer.Option(
            "--json", help='Inputs as JSON: {"name": data} or [{"name", "dtype", "shape", "data"}].'
        ),
    ] = None,
    text: Annotated[str | None, typer.Option(help="Text to send.")] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.001, help="Deadline in seconds; else the gateway's.")
    ] = None,
    output: Annotated[Output, typer.Option(help="How to write the answer.")] = Output.TABLE,
    url: Url = None,
    api_key: ApiKey = None,
    data: Data = DATA,
) -> None:
    """Ask a model once and wait for its answer."""
    if [file, json_text, text].count(None) != 2:
        raise Stop(Exit.USAGE, "give one of FILE, --json and --text")
    target = find_target(url, api_key, data)
    silence_s = ANSWER_TIMEOUT_S if timeout is None else timeout + _SPARE_S
    with calling(target, timeout_s=silence_s) as client:
        body = with_timeout(_body(client, model, file, json_text, text), timeout)
        response = client.post(
            "/v1/predict",
            content=body.content,
            params=dict(body.query),
            headers={"Content-Type": body.content_type},
        )
        show_answer(answer_of(response), output)


predict.__doc__ = f"{predict.__doc__}\n\n{EXIT_CODES}"


def _body(
    client: httpx.Client, model: str, file: Path | None, json_text: str | None, text: str | None
) -> Body:
    if json_text is not None:
        return json_body(model, parse_inputs(json_text))
    if text is not None:
        return json_body(model, {raw_input_name(client, model): [text]})
    if file is None or file == _STDIN:
        return raw_body(model, sys.stdin.buffer.read())
    try:
        return raw_body(model, file.read_bytes(), name=file.name)
    except OSError as error:
        raise Stop(Exit.USAGE, f"cannot read {file}: {error.strerror}") from error
