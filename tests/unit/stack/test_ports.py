"""How ports are chosen."""

import socket
from collections.abc import Iterator

import pytest

from scripts.stack.ports import Wanted, choose_ports


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_a_free_port_is_kept() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        free = listening.getsockname()[1]
    assert choose_ports({"gateway": Wanted(free)}) == {"gateway": free}


def test_a_taken_port_is_replaced(taken: int) -> None:
    assert choose_ports({"gateway": Wanted(taken)})["gateway"] not in {0, taken}


def test_a_taken_port_is_an_error_where_no_other_will_do(taken: int) -> None:
    with pytest.raises(OSError, match="Address already in use"):
        choose_ports({"gateway": Wanted(taken, exact=True)})


def test_a_port_wanted_twice_is_given_once(taken: int) -> None:
    chosen = choose_ports({name: Wanted(taken) for name in ("a", "b", "c")})
    assert len({*chosen.values(), taken}) == 4


def test_a_foreign_host_is_an_error() -> None:
    with pytest.raises(OSError, match="Cannot assign requested address"):
        choose_ports({"gateway": Wanted(0, "192.0.2.1")})
