"""Lines out of chunks: the same lines however the bytes are cut, and none too long in memory."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gateway.lines import Line, LineCutter


def cut(chunks: list[bytes], *, max_line_bytes: int = 1000) -> list[Line]:
    cutter = LineCutter(max_line_bytes)
    lines = [line for chunk in chunks for line in cutter.feed(chunk)]
    return [*lines, *cutter.finish()]


def test_lines_are_numbered_and_blank_ones_skipped() -> None:
    assert cut([b"a\n\n  \r\nb\r\nc"]) == [Line(1, b"a"), Line(4, b"b"), Line(5, b"c")]


def test_a_last_line_needs_no_newline_and_may_have_one() -> None:
    assert cut([b"a\n"]) == cut([b"a"]) == [Line(1, b"a")]
    assert cut([]) == cut([b"\n\n"]) == []


def test_a_line_that_is_too_long_is_dropped_alone() -> None:
    text = b"ok\n" + b"x" * 11 + b"\n" + b"y" * 10 + b"\n"
    assert cut([text], max_line_bytes=10) == [Line(1, b"ok"), Line(2, None), Line(3, b"y" * 10)]


def test_a_line_that_never_ends_is_not_kept() -> None:
    cutter = LineCutter(100)
    for _ in range(1000):
        assert list(cutter.feed(b"x" * 64)) == []
    assert list(cutter.finish()) == [Line(1, None)]


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=20))
def test_where_chunks_end_does_not_matter(text: bytes, cuts: list[int]) -> None:
    ends = [0, *sorted(c for c in cuts if c <= len(text)), len(text)]
    chunks = [text[a:b] for a, b in pairwise(ends)]
    assert cut(chunks, max_line_bytes=20) == cut([text], max_line_bytes=20)
