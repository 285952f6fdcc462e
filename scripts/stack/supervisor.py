"""Keeps children running until told to stop, then stops them in order. Decisions are made in `policy`."""

import asyncio
import signal
from collections.abc import Callable, Sequence

from scripts.stack.child import Child
from scripts.stack.output import Printer
from scripts.stack.policy import GiveUp, Life, RestartRules, after_death, stop_groups
from scripts.stack.reaper import Reaper
from scripts.stack.spec import ChildSpec

EXIT_STOPPED = 0
EXIT_GAVE_UP = 1
EXIT_FORCED = 130
_ME = "up"


class Supervisor:
    """Runs children by stages. `stop` asks for an ordered end, `force` for an immediate one."""

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        *,
        printer: Printer,
        reaper: Reaper,
        rules: RestartRules,
        when_ready: Callable[[], None],
    ) -> None:
        self._specs = specs
        self._printer = printer
        self._reaper = reaper
        self._rules = rules
        self._when_ready = when_ready  # called once, when every child was ready
        self._children: dict[str, Child] = {}
        self._was_ready = {spec.name: asyncio.Event() for spec in specs}
        self._stopping = asyncio.Event()
        self._exit_code = EXIT_STOPPED

    async def run(self) -> int:
        """Start everything, keep it running, and return the exit code once everything has ended."""
        try:
            async with asyncio.TaskGroup() as tasks:
                starting = tasks.create_task(self._start(tasks), name="start")
                await self._stopping.wait()
                starting.cancel()
                await self._stop_children()
        finally:
            self._kill_all()
        return self._exit_code

    def stop(self) -> None:
        """Ask for an ordered end; returns at once. Asking twice is asking once."""
        self._stopping.set()

    def force(self) -> None:
        """Kill every child now; `run` returns soon after."""
        self._exit_code = EXIT_FORCED
        self._stopping.set()
        self._kill_all()

    async def _start(self, tasks: asyncio.TaskGroup) -> None:
        for stage in sorted({spec.stage for spec in self._specs}):
            here = [spec for spec in self._specs if spec.stage == stage]
            for spec in here:
                tasks.create_task(self._keep(spec), name=spec.name)
            for spec in here:
                await self._was_ready[spec.name].wait()
        self._when_ready()

    async def _keep(self, spec: ChildSpec) -> None:
        lives: list[Life] = []
        while not self._stopping.is_set():
            try:
                child = await Child.start(spec, self._reaper)
            except OSError as error:
                self._give_up(spec, f"can not be started: {error}")
                return
            code, life = await self._live(child)
            lives.append(life)
            if not self._stopping.is_set():
                await self._after_death(spec, code, lives)

    async def _live(self, child: Child) -> tuple[int, Life]:
        self._children[child.spec.name] = child
        try:
            async with asyncio.TaskGroup() as tasks:
                ready = tasks.create_task(self._watch_start(child), name=f"start of {child.spec.name}")
                ended = await child.run(self._printer)
                ready.cancel()
            return ended
        finally:
            del self._children[child.spec.name]

    async def _watch_start(self, child: Child) -> None:
        spec = child.spec
        if self._stopping.is_set():  # asked while the process was being started
            child.kill()
        elif await child.until_ready():
            self._say(f"{spec.name} is ready after {child.age_s:.1f} s {spec.where}".rstrip())
            self._was_ready[spec.name].set()
        else:
            self._say(f"{spec.name} was not ready within {spec.ready_within_s:g} s", fault=True)
            child.kill()

    async def _after_death(self, spec: ChildSpec, code: int, lives: list[Life]) -> None:
        decision = after_death(lives, self._rules)
        if isinstance(decision, GiveUp):
            self._give_up(spec, f"{decision.reason}, the last time with {describe_exit(code)}")
            return
        self._say(
            f"{spec.name} ended with {describe_exit(code)}, starting it again in {decision.delay_s:g} s",
            fault=True,
        )
        try:
            await asyncio.wait_for(self._stopping.wait(), decision.delay_s)
        except TimeoutError:
            return

    def _give_up(self, spec: ChildSpec, why: str) -> None:
        self._say(f"{spec.name} {why}; stopping everything", fault=True)
        self._exit_code = EXIT_GAVE_UP
        self._stopping.set()

    async def _stop_children(self) -> None:
        for group in stop_groups({spec.name: spec.role for spec in self._specs}):
            async with asyncio.TaskGroup() as tasks:
                for child in [self._children[name] for name in group if name in self._children]:
                    tasks.create_task(self._stop_child(child), name=f"stop of {child.spec.name}")

    async def _stop_child(self, child: Child) -> None:
        name, grace_s = child.spec.name, child.spec.stop_grace_s
        if await child.stop():
            self._say(f"{name} stopped")
        else:
            self._say(f"{name} did not stop within {grace_s:g} s and was killed", fault=True)

    def _kill_all(self) -> None:
        for child in self._children.values():
            child.kill()

    def _say(self, line: str, *, fault: bool = False) -> None:
        self._printer.say(_ME, line, fault=fault)


def describe_exit(code: int) -> str:
    """Name an exit code as asyncio gives it: negative for a signal."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
