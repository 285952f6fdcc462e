"""Who may connect to NATS at all, on the real server with the shipped configuration."""

import json
import socket

import pytest

from tests.servers import NatsServer

pytestmark = pytest.mark.integration

USERS = ("gateway", "worker", "scheduler", "publisher", "monitor", "sys")


def login(server: NatsServer, **credentials: str) -> bytes:
    """Log in by hand and return the server's verdict; nats-py leaks its socket when it is refused."""
    options = json.dumps({"verbose": False, **credentials})
    address = ("127.0.0.1", server.port)
    with socket.create_connection(address, timeout=10) as connection, connection.makefile("rb") as reader:
        reader.readline()  # INFO
        connection.sendall(f"CONNECT {options}\r\nPING\r\n".encode())
        return reader.readline().strip()


@pytest.mark.parametrize("role", USERS)
def test_only_the_right_password_opens_a_connection(nats_server: NatsServer, role: str) -> None:
    right = {"user": role, "pass": nats_server.passwords[role]}
    assert login(nats_server, **right) == b"PONG"
    assert login(nats_server, **{**right, "pass": "wrong"}) == b"-ERR 'Authorization Violation'"


def test_an_unnamed_client_is_refused(nats_server: NatsServer) -> None:
    assert login(nats_server) == b"-ERR 'Authorization Violation'"
