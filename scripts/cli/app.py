"""All commands of `model-serving`, and the one place where a Stop becomes an exit code."""

import sys
from collections.abc import Sequence

import typer

from scripts.cli import dead, env, jobs, models, predict, services, up
from scripts.cli.exits import EXIT_CODES, Exit, Stop

app = typer.Typer(
    name="model-serving",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # it prints local variables, and those may hold keys
    help="Message-queue-driven asynchronous inference.",
    epilog=EXIT_CODES,
)
app.command()(up.up)
app.command()(predict.predict)
app.add_typer(jobs.app, name="jobs")
app.add_typer(models.app, name="models")
app.add_typer(dead.app, name="dead")
app.command()(env.env)
for service in (services.gateway, services.worker, services.scheduler, services.check):
    app.command()(service)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and leave the process with its exit code."""
    try:
        code = app(list(sys.argv[1:] if arguments is None else arguments), prog_name="model-serving")
    except Stop as stop:
        sys.stderr.write(f"model-serving: {stop.message}\n")
        sys.exit(stop.code)
    except BrokenPipeError:  # `model-serving jobs results ID | head`
        sys.stderr.close()
        sys.exit(Exit.REFUSED)
    sys.exit(code)
