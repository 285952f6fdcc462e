"""Which gateway a command talks to, and with which key.

First what the command line says, then the environment, then what a running `up` wrote into its folder.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from scripts.cli.exits import Exit, Stop
from scripts.stack.folder import ADMIN_API_KEY, API_KEY, DEFAULT_DATA, BadFolder, DataFolder

URL_VARIABLE = "MODEL_SERVING_URL"
KEY_VARIABLE = "MODEL_SERVING_API_KEY"
ADMIN_KEY_VARIABLE = "MODEL_SERVING_ADMIN_API_KEY"

Url = Annotated[str | None, typer.Option(help=f"Address of the gateway; else ${URL_VARIABLE}, else --data.")]
ApiKey = Annotated[str | None, typer.Option(help=f"API key; else ${KEY_VARIABLE}, else --data.")]
AdminKey = Annotated[
    str | None, typer.Option("--api-key", help=f"Admin API key; else ${ADMIN_KEY_VARIABLE}, else --data.")
]
Data = Annotated[Path, typer.Option(help="Data folder of 'model-serving up'.", file_okay=False)]
DATA: Path = DEFAULT_DATA


@dataclass(frozen=True, slots=True)
class Target:
    """A gateway and the key to it."""

    url: str
    api_key: str | None


def find_target(
    url: str | None,
    api_key: str | None,
    data: Path,
    *,
    admin: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Target:
    """Find the gateway, and a caller's key to it or an admin's. Raises Stop if nothing says where it is.

    A key from the data folder goes only to the gateway from the data folder.
    """
    environment = os.environ if environment is None else environment
    key = api_key or environment.get(ADMIN_KEY_VARIABLE if admin else KEY_VARIABLE)
    if given := url or environment.get(URL_VARIABLE):
        return Target(given.rstrip("/"), key)
    try:
        folder = DataFolder(data)
        endpoints = folder.endpoints()
        if endpoints is None:
            raise Stop(
                Exit.NO_CONNECTION,
                f"no gateway: nothing runs in {data} (start one with 'model-serving up'), "
                f"and neither --url nor {URL_VARIABLE} is given",
            )
        return Target(
            endpoints.gateway, key or folder.read_secrets().get(ADMIN_API_KEY if admin else API_KEY)
        )
    except (BadFolder, PermissionError) as error:
        raise Stop(Exit.REFUSED, str(error)) from error
