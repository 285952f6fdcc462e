"""Fixtures that several integration tests share."""

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from infra.connections.clients import Role
from scripts.models.identity import identity_model
from tests.integration.broker_stand import MODEL, Declared, Link, connected, declared
from tests.integration.services import Service, service
from tests.integration.worker_stand import OWN, OWN_LOOP, SETTINGS, Stack
from tests.models import add_model, expand_model, install_test_models, loop_model
from tests.servers import NatsServer, ValkeyServer


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Everything but workers, for the tests of this file."""
    folder = tmp_path_factory.mktemp("worker")
    install_test_models(folder / "models")
    add_model(folder / "models", OWN, identity_model())
    add_model(folder / "models", OWN_LOOP, loop_model())
    add_model(folder / "models", "own-expand", expand_model())
    add_model(folder / "models", "hanging", loop_model(), max_execution_s=1.0)
    with ExitStack() as opened:
        broker = opened.enter_context(NatsServer(folder / "nats"))
        valkey = opened.enter_context(ValkeyServer(folder / "valkey"))
        scheduler = opened.enter_context(service("scheduler", folder, broker, valkey, **SETTINGS))
        scheduler.wait_ready()
        yield Stack(folder, broker, valkey)


@pytest.fixture(scope="module")
def shared_worker(stack: Stack) -> Iterator[Service]:
    """One worker for the tests that leave it as it was. It does not serve the models named own-... ."""
    with stack.worker() as worker:
        yield worker


@pytest_asyncio.fixture
async def broker(nats_server: NatsServer) -> AsyncIterator[Declared]:
    async with declared(nats_server, MODEL) as broker:
        yield broker


@pytest_asyncio.fixture
async def publisher(nats_server: NatsServer) -> AsyncIterator[Link]:
    async with connected(nats_server, Role.PUBLISHER) as publisher:
        yield publisher


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A NATS server that this test may stop, kill and hang."""
    with NatsServer(tmp_path) as server:
        yield server
