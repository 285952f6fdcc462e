"""`model-serving up`: the whole system on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from scripts.cli.exits import EXIT_CODES, Exit, Stop
from scripts.cli.target import DATA, Data
from scripts.stack.embedded import UpOptions
from scripts.stack.folder import BadFolder, FolderInUse
from scripts.stack.ports import LOOPBACK
from scripts.stack.servers import MissingProgram
from scripts.stack.up import run_up


def up(
    *,
    data: Data = DATA,
    host: Annotated[str, typer.Option(help="Address of the gateway; all else is on loopback.")] = LOOPBACK,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the gateway; else 8000 if it is free.")
    ] = None,
    free_ports: Annotated[
        bool, typer.Option("--free-ports", help="Use any free ports, not the usual ones.")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, max=64, help="Worker processes.")] = 1,
    gateway_processes: Annotated[int, typer.Option(min=1, max=64, help="Processes that share the port.")] = 1,
    model_repository: Annotated[
        Path | None, typer.Option(help="Folder of models; else 'models' in the data folder.", file_okay=False)
    ] = None,
) -> None:
    """Run NATS, Valkey, scheduler, workers and gateway here until Ctrl-C. Data outlives a restart."""
    options = UpOptions(
        data=data,
        host=host,
        port=port,
        workers=workers,
        gateway_processes=gateway_processes,
        model_repository=model_repository,
        usual_ports=not free_ports,
    )
    try:
        code = run_up(options)
    except (FolderInUse, BadFolder, MissingProgram, OSError) as error:
        raise Stop(Exit.REFUSED, str(error)) from error
    raise typer.Exit(code)


up.__doc__ = f"{up.__doc__}\n\n{EXIT_CODES}"
