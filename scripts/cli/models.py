"""`model-serving models`: what there is to ask."""

from typing import Annotated

import typer

from scripts.cli.calls import answer_of, calling
from scripts.cli.show import Output, show_models
from scripts.cli.target import DATA, ApiKey, Data, Url, find_target

app = typer.Typer(no_args_is_help=True, help="Show the models of the service.")


@app.callback()
def _group() -> None:
    """Show the models of the service."""


@app.command("list")
def list_models(
    *,
    output: Annotated[Output, typer.Option(help="How to write the answer.")] = Output.TABLE,
    url: Url = None,
    api_key: ApiKey = None,
    data: Data = DATA,
) -> None:
    """List the models, what they take and give, and how many workers serve each."""
    with calling(find_target(url, api_key, data)) as client:
        show_models(answer_of(client.get("/v1/models"))["models"], output)
