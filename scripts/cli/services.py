"""The commands that become a service, or that check what a service would read."""

import os
import sys
from typing import Annotated, NoReturn

import typer

Check = Annotated[bool, typer.Option("--check", help="Try settings and connections, and exit.")]


def gateway(*, check: Check = False) -> None:
    """Run a gateway, with settings from the environment, until SIGTERM."""
    _become("gateway", check=check)


def worker(*, check: Check = False) -> None:
    """Run a worker, with settings from the environment, until SIGTERM; it drains first."""
    _become("workers", check=check)


def scheduler(*, check: Check = False) -> None:
    """Run the scheduler, with settings from the environment, until SIGTERM."""
    _become("scheduler", check=check)


def check() -> None:
    """Print the settings that all services share, and try to connect to NATS and Redis."""
    # Imported here: it brings the NATS and Redis clients, half of the time that other commands take.
    from scripts.cli.connections import check_all  # noqa: PLC0415

    raise typer.Exit(check_all())


def _become(module: str, *, check: bool) -> NoReturn:
    # A folder called `workers` where the user stands must not take the place of ours.
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", module, *(["--check"] if check else [])]
    os.execve(sys.executable, command, environment)  # noqa: S606 - no shell is wanted
