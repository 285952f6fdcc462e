"""A system of its own for each fault test, because a fault must not be somebody else's surprise."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.stand import Client, System
from tests.servers import NatsServer, ValkeyServer


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """Servers, a scheduler and the chaos model; tests start workers and gateways."""
    with NatsServer(tmp_path / "nats") as nats, ValkeyServer(tmp_path / "valkey") as valkey:
        running = System(tmp_path, nats, valkey)
        running.install_model()
        running.start("scheduler")
        try:
            yield running
        finally:
            running.stop()


@pytest.fixture
def client(system: System) -> Iterator[Client]:
    """A client of a gateway."""
    client = system.start_gateway()
    with client.http:
        yield client
