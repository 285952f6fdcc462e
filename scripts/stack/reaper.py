"""A small process that outlives a killed supervisor and ends every process group it left behind.

`die_with_parent` ends the supervisor's children; this ends their children too, such as the processes of
a gateway. It is run by its path, imports little, and reads lines from stdin: `+PGID` when a group starts,
`-PGID` when it has ended. The end of stdin, which the kernel brings about however the supervisor ends,
is the signal to kill the groups that are left.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path


class Reaper:
    """The supervisor's end of it. Start it before any child."""

    def __init__(self) -> None:
        reading, self._pipe = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__))],
            stdin=reading,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a signal to the supervisor's group must not end it
        )
        os.close(reading)

    def watch(self, group: int) -> None:
        """Kill `group` if the supervisor dies from now on."""
        self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        """Kill what is left of `group` now; its number may mean another one later."""
        kill_group(group)
        self._tell(f"-{group}\n")

    def close(self) -> None:
        """Kill the groups that are still watched and wait for the end of the process."""
        os.close(self._pipe)
        self._process.wait(timeout=10)

    def _tell(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # somebody killed it; the kernel's tie still holds
            os.write(self._pipe, line.encode())


def kill_group(group: int) -> None:
    """Send SIGKILL to every process of `group`, if there is any left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def groups_left(lines: Iterable[str]) -> set[int]:
    """Read what the supervisor said until it ended, and return the groups it did not see end."""
    groups: set[int] = set()
    for line in lines:
        if line.startswith("+"):
            groups.add(int(line[1:]))
        else:
            groups.discard(int(line[1:]))
    return groups


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for group in groups_left(sys.stdin):
        kill_group(group)


if __name__ == "__main__":
    _main()
