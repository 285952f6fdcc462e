"""Cuts a stream of bytes into lines, in bounded memory. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """One line that is not blank. `body` is None if it was too long, and was dropped as it came."""

    number: int  # 1 is the first, blank lines count
    body: bytes | None


class LineCutter:
    """Takes chunks as they come and gives back the lines that end in them."""

    def __init__(self, max_line_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes
        self._rest = bytearray()
        self._too_long = False
        self._number = 0

    def feed(self, chunk: bytes) -> Iterator[Line]:
        """Yield the lines that `chunk` completes."""
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            yield from self._line(chunk[start:end])
            start = end + 1
        self._keep(chunk[start:])

    def finish(self) -> Iterator[Line]:
        """Yield the last line, if the stream did not end in a newline."""
        if self._rest or self._too_long:
            yield from self._line(b"")

    def _line(self, tail: bytes) -> Iterator[Line]:
        self._keep(tail)
        self._number += 1
        body, too_long = bytes(self._rest).strip(), self._too_long
        self._rest.clear()
        self._too_long = False
        if too_long:
            yield Line(self._number, None)
        elif body:
            yield Line(self._number, body)

    def _keep(self, part: bytes) -> None:
        if self._too_long or len(self._rest) + len(part) > self._max_line_bytes:
            self._too_long = True
            self._rest.clear()
        else:
            self._rest += part
