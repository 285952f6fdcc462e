"""Dead letters: every message that is given up leaves one copy, whatever it holds."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from infra.connections.clients import Role
from infra.connections.dead import ORIGINAL_BYTES, ORIGINAL_SUBJECT, bury
from infra.connections.reading import Stored
from schemas.headers import JOB, PRIORITY, REASON, REPLY_TO
from tests.integration.broker_stand import Declared, Link, connected, declared
from tests.servers import NatsServer

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def broker(nats_server: NatsServer) -> AsyncIterator[Declared]:
    async with declared(nats_server) as broker:
        yield broker


@pytest_asyncio.fixture
async def worker(nats_server: NatsServer, broker: Declared) -> AsyncIterator[Link]:
    async with connected(nats_server, Role.WORKER) as worker:
        yield worker


def a_message(
    body: bytes = b"x",
    *,
    seq: int = 1,
    subject: str = "infer.m~2Ev1.batch",
    headers: dict[str, str] | None = None,
) -> Stored:
    return Stored(subject, headers or {}, body, seq)


async def test_a_dead_letter_says_where_it_came_from_and_why(broker: Declared, worker: Link) -> None:
    headers = {REPLY_TO: "_INBOX_publisher.a", JOB: "j" * 16, "Nats-Rollup": "all", "X-Secret": "s"}
    await bury(worker.requests, "INFER", a_message(headers=headers), "invalid_input: is\r\nwrong")
    (letter,) = await broker.dead_letters()
    assert (letter[ORIGINAL_SUBJECT], letter[REASON]) == ("infer.m~2Ev1.batch", "invalid_input: is  wrong")
    assert (letter[REPLY_TO], letter[JOB]) == ("_INBOX_publisher.a", "j" * 16)
    assert not {"Nats-Rollup", "X-Secret"} & letter.keys()


async def test_burying_the_same_message_again_changes_nothing(broker: Declared, worker: Link) -> None:
    for _ in range(3):
        await bury(worker.requests, "INFER", a_message(), "why")
    assert await broker.count("DEAD") == 1


async def test_a_stream_that_counts_anew_after_a_restart_loses_no_dead_letter(
    broker: Declared, worker: Link
) -> None:
    await bury(worker.requests, "INFER_LIVE", a_message(b"before", seq=1), "why")
    await bury(worker.requests, "INFER_LIVE", a_message(b"after", seq=1), "why")
    assert await broker.count("DEAD") == 2


@pytest.mark.parametrize("less", [0, 1, 100, 500])
async def test_a_message_as_large_as_can_be_is_buried_with_its_end_cut(
    broker: Declared, worker: Link, less: int
) -> None:
    body = bytes(worker.connection.max_payload_bytes - less)
    await bury(worker.requests, "INFER", a_message(body), "w" * 10_000)
    (letter,) = await broker.dead_letters()
    assert letter[ORIGINAL_BYTES] == str(len(body))
    stored = await broker.streams.oldest("DEAD", "dead.m~2Ev1")
    assert stored is not None
    assert 0 < len(body) - len(stored.message.body) < 2000


async def test_headers_as_large_as_can_be_do_not_keep_a_message_from_being_buried(
    broker: Declared, worker: Link
) -> None:
    headers = {PRIORITY: "9" * 900_000, REPLY_TO: "\ufffd" * 300_000}
    await bury(worker.requests, "INFER", a_message(bytes(100_000), headers=headers), "why")
    assert ORIGINAL_BYTES not in (await broker.dead_letters())[0]


@pytest.mark.parametrize(
    "subject",
    [
        "infer.*.live",
        "infer.>.batch",
        "infer.\ufffd.batch",
        "infer.a\x0bb.live",
        "infer." + "a" * 900 + ".live",
    ],
)
async def test_a_hostile_subject_has_a_dead_letter_too(broker: Declared, worker: Link, subject: str) -> None:
    await bury(worker.requests, "INFER", a_message(subject=subject), "why")
    stored = await broker.streams.oldest("DEAD", "dead.~")
    assert stored is not None
    assert stored.message.headers[ORIGINAL_SUBJECT] == subject[:500]
