"""Ports for the servers: the usual ones where they are free, others from the kernel where they are not."""

import contextlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A port that somebody is used to; 0 takes any."""

    port: int
    host: str = LOOPBACK
    exact: bool = False  # no other will do


def choose_ports(wanted: Mapping[str, Wanted]) -> dict[str, int]:
    """Choose a free port for each name, all different. Nothing keeps them free until the servers listen.

    Raises OSError if an exact port is taken or a host is not this machine's.
    """
    with contextlib.ExitStack() as held:  # held together, so that none is given out twice
        sockets = {name: held.enter_context(_bind(want)) for name, want in wanted.items()}
        return {name: bound.getsockname()[1] for name, bound in sockets.items()}


def _bind(want: Wanted) -> socket.socket:
    try:
        return _bind_exactly(want.host, want.port)
    except OSError:
        if want.exact or want.port == 0:
            raise
        return _bind_exactly(want.host, 0)


def _bind_exactly(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    probe = socket.socket(family, socket.SOCK_STREAM)
    try:
        # As the servers do: a connection in TIME_WAIT does not make a port taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        # With SO_REUSEADDR two sockets may be bound to a port, but only one may listen.
        probe.listen(1)
    except BaseException:
        probe.close()
        raise
    return probe
