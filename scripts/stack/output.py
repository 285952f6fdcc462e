"""The output of many children on one terminal: each line after the name of who wrote it."""

import asyncio
import contextlib
import sys
import zlib
from typing import TextIO

_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)  # ANSI
_FAULT = 31
_NAME_WIDTH = 11
_CHUNK_BYTES = 1 << 16
_MAX_LINE_BYTES = 1 << 16


class Printer:
    """Writes prefixed lines, in colour on a terminal. A reader that went away is not an error."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._coloured = self._stream.isatty()

    def say(self, name: str, line: str, *, fault: bool = False) -> None:
        """Write one line in the name of `name`."""
        prefix = f"{name:<{_NAME_WIDTH}} |"
        if self._coloured:
            colour = _FAULT if fault else _COLOURS[zlib.crc32(name.encode()) % len(_COLOURS)]
            prefix = f"\x1b[{colour}m{prefix}\x1b[0m"
        with contextlib.suppress(BrokenPipeError):
            self._stream.write(f"{prefix} {line}\n")
            self._stream.flush()

    async def copy(self, name: str, source: asyncio.StreamReader) -> None:
        """Write every line of `source` until it ends; a line too long for memory is cut in pieces."""
        rest = b""
        while chunk := await source.read(_CHUNK_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _MAX_LINE_BYTES:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self.say(name, line.decode(errors="replace").rstrip("\r"))
        if rest:
            self.say(name, rest.decode(errors="replace"))
