"""One life of one child process: started, watched until it is ready, stopped, and its group swept."""

import asyncio
import contextlib
import os
import signal
import time

from scripts.stack.orphans import die_with_parent
from scripts.stack.output import Printer
from scripts.stack.policy import Life
from scripts.stack.reaper import Reaper, kill_group
from scripts.stack.spec import ChildSpec

_POLL_S = 0.05
_LAST_WORDS_S = 1.0


class Child:
    """A process that `start` started. It leads a process group of its own, so Ctrl-C does not reach it."""

    def __init__(
        self, spec: ChildSpec, process: asyncio.subprocess.Process, output: "_Pipe", reaper: Reaper
    ) -> None:
        self.spec = spec
        self.pid = process.pid
        self.was_ready = False
        self._process = process
        self._output = output
        self._reaper = reaper
        self._started_at = time.monotonic()

    @classmethod
    async def start(cls, spec: ChildSpec, reaper: Reaper) -> "Child":
        """Start the process. Raises OSError if there is no such program."""
        output = await _Pipe.open()
        try:
            process = await asyncio.create_subprocess_exec(
                *spec.command,
                env=dict(spec.environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output.writing_end,
                stderr=output.writing_end,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
        except BaseException:
            output.close()
            raise
        finally:
            os.close(output.writing_end)
        reaper.watch(process.pid)
        return cls(spec, process, output, reaper)

    @property
    def age_s(self) -> float:
        """How long ago it started."""
        return time.monotonic() - self._started_at

    async def run(self, printer: Printer) -> tuple[int, Life]:
        """Copy its output until it ends; return its exit code and its life. Sweeps what its group left."""
        with contextlib.closing(self._output):
            async with asyncio.TaskGroup() as tasks:
                copying = printer.copy(self.spec.name, self._output.reader)
                output = tasks.create_task(copying, name=f"output of {self.spec.name}")
                code = await self._process.wait()
                life = Life(self.age_s, self.was_ready)
                self._reaper.forget(self.pid)
                # A grandchild that left the group may hold the pipe open for ever.
                await asyncio.wait([output], timeout=_LAST_WORDS_S)
                output.cancel()
        return code, life

    async def until_ready(self) -> bool:
        """Ask until it is ready and say whether it got there in time. Ends early if the process does."""
        while self._process.returncode is None and self.age_s < self.spec.ready_within_s:
            with contextlib.suppress(OSError):  # TimeoutError is one
                if await self.spec.is_ready():
                    self.was_ready = self._process.returncode is None
                    return self.was_ready
            await asyncio.sleep(_POLL_S)
        return False

    async def stop(self) -> bool:
        """Ask it to end and kill it if it has not after its grace; say whether it ended by itself."""
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), self.spec.stop_grace_s)
        except TimeoutError:
            self.kill()
            await self._process.wait()
            return False
        return True

    def kill(self) -> None:
        """Send SIGKILL to its whole group."""
        if self._process.returncode is None:
            kill_group(self.pid)

    def _signal(self, which: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(which)


class _Pipe:
    """What a child writes. In place of asyncio's PIPE, with which 3.11 does not see a process end before
    all its own children have closed the pipe too.
    """

    def __init__(
        self, reader: asyncio.StreamReader, transport: asyncio.ReadTransport, writing_end: int
    ) -> None:
        self.reader = reader
        self.writing_end = writing_end  # a file descriptor, for the child; the caller closes its own copy
        self._transport = transport

    @classmethod
    async def open(cls) -> "_Pipe":
        reading, writing = os.pipe()
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb", buffering=0)
        )
        return cls(reader, transport, writing)

    def close(self) -> None:
        self._transport.close()
