"""Live requests: which of PubAck, reply, deadline and lost connection decides, in every order they come."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import gateway.dispatch
from gateway.bodies import Envelopes
from gateway.call import new_call
from gateway.dispatch import QueueDispatcher
from infra.connections.blobs import BlobStore, FolderBlobs
from infra.connections.replies import ReplyInbox
from infra.connections.requests import Requests
from infra.connections.tenants import Tenancy
from schemas.envelope import BlobRef, Failure, InferRequest, Result, decode_request
from schemas.errors import (
    DeadlineExceeded,
    ErrorCode,
    InferenceError,
    InvalidInput,
    Overloaded,
    TooLarge,
    Unavailable,
)
from schemas.headers import DEADLINE_MS, MSG_ID, MSGPACK, REPLY_TO, TENANT
from schemas.tensors import Tensor
from tests.unit.gateway.fake_nats import FakeNats

SOON_S = 0.03
RESULT = Result(id="r", model="m", version=1, outputs=(Tensor("y", "uint8", (1,), b"\7"),))


def a_request(size: int = 1) -> InferRequest:
    return InferRequest(model="m", inputs=(Tensor("x", "uint8", (size,), bytes(size)),))


class Stage:
    """A dispatcher over fake NATS, and the call under way."""

    def __init__(self, nats: FakeNats, dispatcher: QueueDispatcher, inbox: ReplyInbox, blobs: Path) -> None:
        self.nats = nats
        self.inbox = inbox
        self.blobs = blobs
        self._dispatcher = dispatcher
        self.call = new_call(None)
        self.call.tenant = "acme"

    def infer(self, *, timeout_s: float = 2, request: InferRequest | None = None) -> asyncio.Task[Result]:
        return asyncio.create_task(
            self._dispatcher.infer(self.call, request or a_request(), timeout_s=timeout_s)
        )

    def stored_blobs(self) -> int:
        return len(list(self.blobs.glob("*/*")))


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path) as stage:
        yield stage


@asynccontextmanager
async def staged(folder: Path, *, ack_timeout_s: float = 1.0) -> AsyncIterator[Stage]:
    nats = FakeNats()
    requests, inbox = Requests(nats.connection, timeout_s=ack_timeout_s), ReplyInbox(nats.connection)
    await requests.open()
    await inbox.open()
    blobs = BlobStore(FolderBlobs(folder), inline_limit_bytes=1024, timeout_s=2)
    tasks = asyncio.TaskGroup()
    await tasks.__aenter__()
    envelopes = Envelopes(blobs, tasks)
    dispatcher = QueueDispatcher(
        nats.connection, requests, inbox, envelopes, Tenancy(None), ack_timeout_s=ack_timeout_s
    )
    keeping = tasks.create_task(dispatcher.keep_waiting_ones_published())
    yield Stage(nats, dispatcher, inbox, folder)
    keeping.cancel()
    await tasks.__aexit__(None, None, None)


async def raised_by(task: asyncio.Task[Result]) -> InferenceError:
    with pytest.raises(InferenceError) as raised:
        await task
    return raised.value


async def test_a_request_is_published_with_all_that_a_worker_needs(stage: Stage) -> None:
    waiting = stage.infer(timeout_s=1.5)
    message = await stage.nats.message(0)
    assert message.subject == "infer.m.live"
    assert message.headers[MSG_ID] == stage.call.request_id
    assert message.headers[TENANT] == "acme"
    assert message.headers[DEADLINE_MS] == "1500"
    assert message.headers["Nats-TTL"] == "2s"
    assert message.headers["traceparent"] == stage.call.traceparent
    assert decode_request(message.body, MSGPACK) == a_request()
    await stage.nats.reply(message, RESULT)
    await waiting


async def test_the_reply_after_the_puback_is_the_answer(stage: Stage) -> None:
    waiting = stage.infer()
    message = await stage.nats.message(0)
    await stage.nats.ack(message)
    await stage.nats.reply(message, RESULT)
    assert await waiting == RESULT
    assert stage.inbox.in_flight == 0


async def test_a_reply_may_overtake_its_puback(stage: Stage) -> None:
    waiting = stage.infer()
    message = await stage.nats.message(0)
    await stage.nats.reply(message, RESULT)
    assert await waiting == RESULT
    await stage.nats.ack(message)  # changes nothing any more


async def test_a_failure_is_raised_as_the_error_it_describes(stage: Stage) -> None:
    waiting = stage.infer()
    message = await stage.nats.message(0)
    await stage.nats.reply(message, Failure("r", ErrorCode.INVALID_INPUT, "is wrong", field="inputs[0]"))
    error = await raised_by(waiting)
    assert isinstance(error, InvalidInput)
    assert (error.message, error.field) == ("is wrong", "inputs[0]")


@pytest.mark.parametrize(
    ("err_code", "expected"), [(10077, Overloaded), (10054, TooLarge), (10023, Unavailable)]
)
async def test_a_refused_request_fails_at_once(
    stage: Stage, err_code: int, expected: type[InferenceError]
) -> None:
    waiting = stage.infer()
    await stage.nats.ack(await stage.nats.message(0), err_code=err_code)
    assert type(await raised_by(waiting)) is expected


async def test_no_stream_is_unavailable_at_once(stage: Stage) -> None:
    waiting = stage.infer()
    await stage.nats.no_stream(await stage.nats.message(0))
    assert isinstance(await raised_by(waiting), Unavailable)


async def test_no_puback_is_unavailable_soon(tmp_path: Path) -> None:
    async with staged(tmp_path, ack_timeout_s=SOON_S) as stage:
        assert isinstance(await raised_by(stage.infer(timeout_s=60)), Unavailable)


async def test_no_reply_is_a_deadline_exceeded(tmp_path: Path) -> None:
    async with staged(tmp_path, ack_timeout_s=60) as stage:
        waiting = stage.infer(timeout_s=SOON_S)
        await stage.nats.ack(await stage.nats.message(0))
        assert isinstance(await raised_by(waiting), DeadlineExceeded)


async def test_while_disconnected_a_new_request_fails_at_once(stage: Stage) -> None:
    await stage.nats.lose()
    assert isinstance(await raised_by(stage.infer(timeout_s=60)), Unavailable)


async def test_a_stored_request_is_published_again_after_a_reconnection(stage: Stage) -> None:
    waiting = stage.infer(timeout_s=60)
    first = await stage.nats.message(0)
    await stage.nats.ack(first)
    await stage.nats.lose()
    await stage.nats.restore()
    second = await stage.nats.message(1)
    assert second.headers[MSG_ID] == first.headers[MSG_ID]
    assert second.headers[REPLY_TO] == first.headers[REPLY_TO]
    assert int(second.headers[DEADLINE_MS]) <= int(first.headers[DEADLINE_MS])
    await stage.nats.ack(second)
    await stage.nats.reply(second, RESULT)
    assert await waiting == RESULT


async def test_publishing_again_goes_on_until_the_stream_is_back(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.dispatch, "REPUBLISH_PAUSE_S", 0.001)
    waiting = stage.infer(timeout_s=60)
    await stage.nats.ack(await stage.nats.message(0))
    await stage.nats.lose()
    await stage.nats.restore()
    for number in (1, 2, 3):
        await stage.nats.no_stream(await stage.nats.message(number))
    last = await stage.nats.message(4)
    await stage.nats.ack(last)
    await stage.nats.reply(last, RESULT)
    assert await waiting == RESULT


async def test_a_connection_that_stays_away_is_unavailable_before_the_deadline(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.dispatch, "RECONNECT_GRACE_S", SOON_S)
    waiting = stage.infer(timeout_s=60)
    await stage.nats.ack(await stage.nats.message(0))
    await stage.nats.lose()
    error = await raised_by(waiting)
    assert isinstance(error, Unavailable)
    assert error.retry_after_s


async def test_a_caller_that_gives_up_leaves_nothing_behind_but_word_of_it(stage: Stage) -> None:
    waiting = stage.infer()
    message = await stage.nats.message(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await stage.nats.ack(message)
    await stage.nats.reply(message, RESULT)
    await stage.nats.lose()
    await stage.nats.restore()
    assert stage.inbox.in_flight == 0
    subjects = [published.subject for published in stage.nats.client.published]
    assert subjects == ["infer.m.live", f"abort.{stage.call.request_id}"]


async def test_a_large_request_travels_as_a_reference_that_is_deleted_after(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        waiting = stage.infer(request=a_request(size=5000))
        message = await stage.nats.message(0)
        assert isinstance(decode_request(message.body, MSGPACK), BlobRef)
        assert stage.stored_blobs() == 1
        await stage.nats.reply(message, RESULT)
        await waiting
    assert stage.stored_blobs() == 0
