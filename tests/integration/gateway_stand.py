"""A gateway in this process over real servers, and a worker of the tests' own that answers for a model."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
from nats.aio.client import Client
from pydantic import SecretStr

from gateway.app import create_app
from gateway.front import Front
from gateway.settings import GatewaySettings, Settings
from infra.connections.blobs import BlobStore, open_blobs
from infra.connections.clients import NatsConnection, Role, open_nats, open_redis
from infra.connections.placement import Placement
from infra.connections.pulling import Delivery, PullConsumer, Settler
from infra.connections.replies import send_reply
from infra.connections.requests import Requests
from infra.connections.results import Results
from infra.connections.settings import BlobSettings, StreamSettings
from infra.connections.streams import Streams, stream_configs
from infra.connections.tenants import Tenancy, TenantSettings
from schemas.envelope import (
    BlobRef,
    InferRequest,
    Result,
    decode_request,
    encode_blob_ref,
    encode_reply,
    failure_of,
)
from schemas.errors import InferenceError, Unavailable
from schemas.headers import RequestHeaders
from schemas.jobs import ItemState, item_state_of
from schemas.models import ModelCard, Signature, TensorSpec
from schemas.placement import WorkerState, WorkerStatus
from schemas.subjects import Lane, consumer_name
from tests.servers import NatsServer, ValkeyServer

KEY = "a-key-of-acme-0123456789"
OTHER_KEY = "a-key-of-umbrella-0123456789"
SIGNING_KEY = SecretStr("what-gateways-and-workers-share")

ECHO = ModelCard(
    name="echo",
    version=3,
    format="python",
    signature=Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(-1, -1)),),
        outputs=(TensorSpec(name="x", dtype="float32", shape=(-1, -1)),),
    ),
    max_batch_size=8,
)
FILES = ModelCard(
    name="org/files.v1",
    version=1,
    format="python",
    signature=Signature(inputs=(TensorSpec(name="file", dtype="bytes", shape=(-1,)),), outputs=()),
    max_batch_size=8,
    raw_input="file",
)

Behaviour = Callable[[InferRequest], Result | InferenceError | None]


def echo(request: InferRequest) -> Result:
    """Answer with the inputs."""
    return Result(id="x", model=request.model, version=3, outputs=request.inputs, timing={"run_ms": 0.1})


@dataclass(slots=True)
class Stand:
    """What a test works with. The worker answers by `behaviour`; None from it leaves a request unanswered."""

    client: httpx.AsyncClient
    front: Front
    streams: Streams
    requests: Requests
    results: Results
    placement: Placement
    blobs: BlobStore
    blobs_folder: Path
    cards: Sequence[ModelCard]
    settings: Settings  # the gateway's
    published: list[str]  # every subject that the gateway published to
    behaviour: Behaviour = echo
    gate: asyncio.Event | None = None  # if there is one, the worker waits for it before it answers
    seen: list[tuple[RequestHeaders, InferRequest]] = field(default_factory=list)

    @property
    def other_tenant(self) -> dict[str, str]:
        """The header of somebody else."""
        return {"authorization": f"Bearer {OTHER_KEY}"}

    async def declare(self) -> None:
        """Declare streams and consumers, as the scheduler does, also after a restart of the broker."""
        async with asyncio.timeout(15):
            while True:
                try:
                    await self.streams.declare()
                    for card in self.cards:
                        await self.streams.declare_consumers(card.name)
                    return
                except Unavailable:
                    await asyncio.sleep(0.05)

    async def until_seen(self, count: int) -> None:
        """Wait until the worker has been handed so many requests."""

        async def handed() -> bool:
            return len(self.seen) >= count

        await until(handed)

    async def until_ready(self) -> None:
        """Wait until the gateway has its connection back."""

        async def ready() -> bool:
            return (await self.client.get("/health/ready")).status_code == 200

        await until(ready)

    async def until_final(self, job: str) -> dict[str, Any]:
        """Ask for a job until it has ended."""
        async with asyncio.timeout(15):
            while True:
                answer = await self.client.get(f"/v1/jobs/{job}")
                status: dict[str, Any] = answer.json()
                assert answer.status_code == 200, status
                if status["state"] in ("succeeded", "failed", "cancelled", "expired"):
                    return status
                await asyncio.sleep(0.02)


@asynccontextmanager
async def standing(
    nats_server: NatsServer,
    valkey_server: ValkeyServer,
    folder: Path,
    *,
    cards: Sequence[ModelCard] = (ECHO, FILES),
    declare: bool = True,
    stream_settings: StreamSettings | None = None,
    **gateway_settings: object,
) -> AsyncIterator[Stand]:
    """Open everything, and in the end delete the streams that were declared."""
    settings = _settings(nats_server, valkey_server, folder, gateway_settings)
    published: list[str] = []
    stream_settings = stream_settings or StreamSettings(max_bytes=64 << 20, results_max_bytes=64 << 20)
    async with (
        open_nats(nats_server.settings("scheduler"), Role.SCHEDULER) as scheduler,
        open_nats(nats_server.settings("worker"), Role.WORKER) as connection,
        open_redis(valkey_server.settings()) as redis,
    ):
        admin, requests = Requests(scheduler, timeout_s=5), Requests(connection, timeout_s=5)
        await admin.open()
        await requests.open()
        streams = Streams(admin, stream_settings)
        await redis.flushdb()
        placement = Placement(redis)
        status = WorkerStatus(worker="w1", state=WorkerState.READY, models=tuple(card.name for card in cards))
        await placement.announce(status, list(cards))
        front = create_app(settings)
        transport = httpx.ASGITransport(app=front)  # type: ignore[arg-type]
        try:
            async with (
                _tapped(published),
                front.app.lifespan(),
                httpx.AsyncClient(
                    transport=transport,
                    base_url="http://gateway",
                    headers={"authorization": f"Bearer {KEY}"},
                    timeout=30,
                ) as client,
            ):
                results = Results(connection, requests, timeout_s=5)
                stand = Stand(
                    client=client,
                    front=front,
                    streams=streams,
                    requests=requests,
                    results=results,
                    placement=placement,
                    blobs=open_blobs(settings.blobs),
                    blobs_folder=folder / "blobs",
                    cards=cards,
                    settings=settings,
                    published=published,
                )
                if declare:
                    await stand.declare()
                worker = _Worker(stand, connection, requests)
                async with _in_background(worker.run(cards)):
                    yield stand
        finally:
            for config in stream_configs(stream_settings) if declare else ():
                await admin.api(f"STREAM.DELETE.{config['name']}")


@asynccontextmanager
async def another_gateway(stand: Stand) -> AsyncIterator[httpx.AsyncClient]:
    """Open a second gateway over the same servers, and give a client of it."""
    front = create_app(stand.settings)
    transport = httpx.ASGITransport(app=front)  # type: ignore[arg-type]
    headers = stand.client.headers
    async with (
        front.app.lifespan(),
        httpx.AsyncClient(
            transport=transport, base_url="http://gateway", headers=headers, timeout=30
        ) as client,
    ):
        yield client


@asynccontextmanager
async def _tapped(subjects: list[str]) -> AsyncIterator[None]:
    """Note what every gateway in this process publishes."""
    publish = Client.publish

    async def noting(client: Client, subject: str, *arguments: Any, **options: Any) -> None:
        if str(client.options["name"]).startswith("model-serving-gateway"):
            subjects.append(subject)
        await publish(client, subject, *arguments, **options)

    with patch.object(Client, "publish", noting):
        yield


async def until(happened: Callable[[], Awaitable[bool]]) -> None:
    """Return as soon as `happened()` is true. Raises TimeoutError after 15 s."""
    async with asyncio.timeout(15):
        while True:
            if await happened():
                return
            await asyncio.sleep(0.01)


def _settings(
    nats_server: NatsServer, valkey_server: ValkeyServer, folder: Path, gateway: dict[str, object]
) -> Settings:
    keys = {"api_keys": SecretStr(f"acme:{KEY},umbrella:{OTHER_KEY}")}
    return Settings(
        gateway=GatewaySettings(**(keys | gateway)),  # type: ignore[arg-type]
        nats=nats_server.settings("gateway"),
        redis=valkey_server.settings(),
        blobs=BlobSettings(store=f"file://{folder / 'blobs'}", inline_limit_bytes=64 * 1024),
        tenants=TenantSettings(signing_key=SIGNING_KEY),
    )


@asynccontextmanager
async def _in_background(running: Coroutine[None, None, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(running)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class _Worker:
    """The smallest thing that keeps the contract of `docs/MESSAGES.md`."""

    def __init__(self, stand: Stand, connection: NatsConnection, requests: Requests) -> None:
        self._stand = stand
        self._connection = connection
        self._settler = Settler(connection, requests)
        self._tenancy = Tenancy(SIGNING_KEY)
        self._deliveries: asyncio.Queue[Delivery] = asyncio.Queue()
        self._consumers: list[PullConsumer] = []

    async def run(self, cards: Sequence[ModelCard]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for card in cards:
                for lane in Lane:
                    consumer = PullConsumer(
                        self._connection,
                        lane.stream,
                        consumer_name(card.name, lane),
                        room=lambda: 500 - self._deliveries.qsize(),
                        on_delivery=self._deliveries.put_nowait,
                    )
                    self._consumers.append(consumer)
                    tasks.create_task(consumer.run())
            while True:
                with suppress(Unavailable):  # the server is away; what it lost is published again
                    await self._answer(await self._deliveries.get())
                for consumer in self._consumers:
                    consumer.top_up()

    async def _answer(self, delivery: Delivery) -> None:
        headers = self._tenancy.read(delivery.headers, fallback_id="none")
        request = decode_request(delivery.body, headers.content_type)
        if isinstance(request, BlobRef):
            body = await self._stand.blobs.get(headers.tenant, request)
            request = decode_request(body, headers.content_type)
        assert isinstance(request, InferRequest)
        self._stand.seen.append((headers, request))
        if self._stand.gate is not None:
            await self._stand.gate.wait()
        outcome = self._stand.behaviour(request)
        if outcome is None:
            return
        reply = failure_of(outcome, headers.id) if isinstance(outcome, InferenceError) else outcome
        body = encode_reply(reply)
        if len(body) > self._stand.blobs.inline_limit_bytes:
            body = encode_blob_ref(await self._stand.blobs.put(headers.tenant, body))
        if headers.job is not None:
            failed = item_state_of(outcome.code) if isinstance(outcome, InferenceError) else None
            await self._stand.results.write(
                headers.tenant,
                headers.job,
                headers.item,
                state=failed or ItemState.SUCCEEDED,
                body=body,
                attempts=delivery.attempt,
            )
        if headers.reply_to is not None:
            await send_reply(self._connection, headers.reply_to, body)
        await self._settler.ack(delivery)
