"""How the output of children looks on one terminal."""

import asyncio
import io

from scripts.stack.output import Printer


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class _Closed(io.StringIO):
    def write(self, _: str) -> int:
        raise BrokenPipeError


async def copied(*chunks: bytes) -> str:
    source, screen = asyncio.StreamReader(), io.StringIO()
    for chunk in chunks:
        source.feed_data(chunk)
    source.feed_eof()
    await Printer(screen).copy("worker", source)
    return screen.getvalue()


async def test_each_line_follows_the_name_of_its_writer() -> None:
    assert await copied(b"one\ntwo\r\n") == "worker      | one\nworker      | two\n"


async def test_a_last_line_needs_no_end() -> None:
    assert await copied(b"one\ntw", b"o") == "worker      | one\nworker      | two\n"


async def test_bytes_that_are_no_text_are_shown_as_such() -> None:
    assert await copied(b"\xff\n") == "worker      | \ufffd\n"


async def test_an_endless_line_is_cut_in_pieces() -> None:
    lines = (await copied(b"x" * 300_000)).splitlines()
    assert len(lines) > 2
    assert sum(line.count("x") for line in lines) == 300_000


def test_names_are_coloured_on_a_terminal_only() -> None:
    terminal, file = _Terminal(), io.StringIO()
    Printer(terminal).say("up", "hello", fault=True)
    Printer(file).say("up", "hello", fault=True)
    assert terminal.getvalue() == "\x1b[31mup          |\x1b[0m hello\n"
    assert file.getvalue() == "up          | hello\n"


def test_a_reader_that_went_away_is_not_an_error() -> None:
    Printer(_Closed()).say("up", "hello")
