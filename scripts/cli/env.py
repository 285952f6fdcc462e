"""`model-serving env`: the addresses and keys of a running `up`, for a shell."""

import shlex
import sys
from enum import StrEnum
from typing import Annotated

import typer

from scripts.cli.exits import Exit, Stop
from scripts.cli.target import DATA, KEY_VARIABLE, URL_VARIABLE, Data
from scripts.stack.folder import (
    API_KEY,
    SIGNING_KEY,
    VALKEY_PASSWORD,
    BadFolder,
    DataFolder,
    Endpoints,
    admin_api_keys,
    api_keys,
)


class Role(StrEnum):
    """Whose credentials; the roles of `infra/nats/nats-server.conf`."""

    GATEWAY = "gateway"
    WORKER = "worker"
    SCHEDULER = "scheduler"
    PUBLISHER = "publisher"
    MONITOR = "monitor"


_SERVICES = (Role.GATEWAY, Role.WORKER, Role.SCHEDULER)


def env(
    *,
    role: Annotated[
        Role | None, typer.Option(help="For a client of NATS with this role; else for HTTP.")
    ] = None,
    data: Data = DATA,
) -> None:
    """Print how to reach a running 'up', for a shell: source <(model-serving env)."""
    folder = DataFolder(data)
    try:
        endpoints, secrets = folder.endpoints(), folder.read_secrets()
    except (BadFolder, PermissionError) as error:
        raise Stop(Exit.REFUSED, str(error)) from error
    if endpoints is None:
        raise Stop(Exit.NO_CONNECTION, f"nothing runs in {data}; start it with 'model-serving up'")
    if role is None:
        variables = {URL_VARIABLE: endpoints.gateway, KEY_VARIABLE: secrets[API_KEY]}
    else:
        variables = _of_role(role, endpoints, secrets, folder)
    for name, value in variables.items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")


def _of_role(role: Role, endpoints: Endpoints, secrets: dict[str, str], folder: DataFolder) -> dict[str, str]:
    variables = {
        "NATS_URL": endpoints.nats,
        "NATS_USER": role,
        "NATS_PASSWORD": secrets[f"NATS_{role.name}_PASSWORD"],
    }
    if role in _SERVICES:
        address = endpoints.redis.removeprefix("redis://")
        variables["REDIS_URL"] = f"redis://:{secrets[VALKEY_PASSWORD]}@{address}"
        variables["BLOB_STORE"] = f"file://{folder.blobs}"
        variables["MODEL_REPOSITORY"] = endpoints.models
        variables[SIGNING_KEY] = secrets[SIGNING_KEY]
    if role is Role.GATEWAY:
        variables["API_KEYS"] = api_keys(secrets)
        variables["ADMIN_API_KEYS"] = admin_api_keys(secrets)
    return variables
