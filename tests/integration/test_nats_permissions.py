"""What each role may do on NATS, proved on the real server with the shipped configuration.

A violation does not raise in the client: the server reports it, in order, before the answer to the
next ping, and nats-py hands it to `error_cb`. So `flush()` is the event that a verdict waits for, twice:
nats-py 2.16 writes the ping of a flush ahead of what it has pending.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.errors import NoRespondersError
from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StreamConfig

from tests.servers import NatsServer

pytestmark = pytest.mark.integration

API = "$JS.API"
FILTER_MISMATCH = 10131
ROLES = ("gateway", "worker", "scheduler", "publisher", "monitor")
STREAMS = (
    StreamConfig(name="INFER", subjects=["infer.*.batch"], retention=RetentionPolicy.WORK_QUEUE),
    StreamConfig(name="INFER_LIVE", subjects=["infer.*.live"], retention=RetentionPolicy.WORK_QUEUE),
    StreamConfig(name="JOBS", subjects=["job.*.*", "cancel.*.*", "webhook.*.*"], allow_direct=True),
    StreamConfig(name="RESULTS", subjects=["result.*.*.*"], allow_direct=True),
    StreamConfig(name="DEAD", subjects=["dead.*"]),
)

MAY_PUBLISH = {
    "gateway": (
        "infer.m1.live",
        "job.acme.j1",
        "cancel.acme.j1",
        "result.acme.j1.0",
        f"{API}.STREAM.INFO.INFER",
        f"{API}.STREAM.INFO.RESULTS",
        f"{API}.DIRECT.GET.JOBS",
        f"{API}.DIRECT.GET.JOBS.job.acme.j1",
        f"{API}.DIRECT.GET.RESULTS",
        f"{API}.DIRECT.GET.RESULTS.result.acme.j1.0",
        f"{API}.STREAM.MSG.GET.JOBS",
        f"{API}.STREAM.MSG.GET.RESULTS",
        f"{API}.CONSUMER.CREATE.RESULTS.scan.result.acme.j1.0",
        f"{API}.CONSUMER.DELETE.RESULTS.scan",
        f"{API}.CONSUMER.MSG.NEXT.JOBS.scan",
        f"{API}.DIRECT.GET.DEAD",
        f"{API}.CONSUMER.CREATE.DEAD.read-1.dead.m1",
        f"{API}.CONSUMER.CREATE.DEAD.read-1.dead.*",
        f"{API}.CONSUMER.DELETE.DEAD.read-1",
        f"{API}.CONSUMER.MSG.NEXT.DEAD.read-1",
        f"{API}.STREAM.MSG.DELETE.DEAD",
        f"{API}.STREAM.PURGE.DEAD",
    ),
    "worker": (
        f"{API}.CONSUMER.MSG.NEXT.INFER.m1-batch",
        f"{API}.CONSUMER.MSG.NEXT.INFER_LIVE.m1-live",
        "$JS.ACK.INFER.m1-batch.1.1.1.1.0",
        "$JS.ACK.INFER_LIVE.m1-live.1.1.1.1.0",
        "$JS.ACK._.hash.INFER.m1-batch.1.1.1.1.0",
        "$JS.ACK._.hash.INFER_LIVE.m1-live.1.1.1.1.0",
        "_INBOX_gateway.g1.token",
        "_INBOX_publisher.p1.token",
        "result.acme.j1.0",
        "dead.m1",
        f"{API}.DIRECT.GET.RESULTS.result.acme.j1.0",
        f"{API}.STREAM.INFO.INFER",
        f"{API}.CONSUMER.CREATE.JOBS.w1.cancel.acme.j1",
        f"{API}.CONSUMER.MSG.NEXT.JOBS.cancels",
    ),
    "scheduler": (
        f"{API}.STREAM.UPDATE.INFER",
        f"{API}.STREAM.MSG.DELETE.INFER",
        f"{API}.CONSUMER.LIST.INFER",
        "$JS.ACK.ADVISORIES.sweep.1.1.1.1.0",
        "dead.m1",
        "result.acme.j1.0",
        "cancel.acme.j1",
        "webhook.acme.j1",
        "_INBOX_gateway.g1.token",
    ),
    "publisher": ("infer.m1.batch", f"{API}.DIRECT.GET.RESULTS.result.public.j1.0"),
    "monitor": (f"{API}.INFO", f"{API}.STREAM.INFO.DEAD", f"{API}.CONSUMER.LIST.INFER"),
}
MAY_NOT_PUBLISH = {
    "gateway": (
        "infer.m1.live.more",
        "webhook.acme.j1",
        "dead.m1",
        "_INBOX_gateway.g1.token",
        "_INBOX_worker.w1.token",
        "$JS.ACK.INFER.m1-batch.1.1.1.1.0",
        f"{API}.STREAM.CREATE.X",
        f"{API}.STREAM.DELETE.INFER",
        f"{API}.STREAM.PURGE.INFER",
        f"{API}.STREAM.PURGE.RESULTS",
        f"{API}.STREAM.DELETE.DEAD",
        f"{API}.STREAM.UPDATE.DEAD",
        f"{API}.CONSUMER.CREATE.DEAD.read-1",
        f"{API}.CONSUMER.DELETE.ADVISORIES.dead-letters",
        f"{API}.STREAM.MSG.DELETE.RESULTS",
        f"{API}.CONSUMER.CREATE.INFER.thief",
        f"{API}.CONSUMER.DELETE.INFER.m1-batch",
        f"{API}.CONSUMER.MSG.NEXT.INFER.m1-batch",
        f"{API}.DIRECT.GET.INFER",
    ),
    "worker": (
        "infer.m1.batch",
        "job.acme.j1",
        "cancel.acme.j1",
        "webhook.acme.j1",
        "_INBOX_scheduler.s1.token",
        "_INBOX_monitor.m1.token",
        "$JS.ACK.JOBS.cancels.1.1.1.1.0",
        f"{API}.CONSUMER.CREATE.INFER.thief",
        f"{API}.CONSUMER.CREATE.RESULTS.scan",
        f"{API}.CONSUMER.CREATE.JOBS.w1",
        f"{API}.CONSUMER.CREATE.JOBS.w1.job.acme.j1",
        f"{API}.CONSUMER.DELETE.INFER.m1-batch",
        f"{API}.STREAM.INFO.RESULTS",
        f"{API}.STREAM.DELETE.INFER",
        f"{API}.STREAM.PURGE.INFER",
        f"{API}.STREAM.MSG.GET.INFER",
        f"{API}.DIRECT.GET.RESULTS",
    ),
    "scheduler": ("infer.m1.batch", "job.acme.j1", "_INBOX_worker.w1.token"),
    "publisher": (
        "result.public.j1.0",
        "job.public.j1",
        "cancel.public.j1",
        "webhook.public.j1",
        "dead.m1",
        "_INBOX_gateway.g1.token",
        "_INBOX_publisher.p1.token",
        f"{API}.STREAM.INFO.INFER",
        f"{API}.STREAM.NAMES",
        f"{API}.CONSUMER.MSG.NEXT.INFER.m1-batch",
        f"{API}.DIRECT.GET.RESULTS",
        f"{API}.DIRECT.GET.RESULTS.result.acme.j1.0",
        f"{API}.DIRECT.GET.JOBS.job.public.j1",
    ),
    "monitor": (
        "infer.m1.batch",
        f"{API}.STREAM.PURGE.INFER",
        f"{API}.STREAM.MSG.GET.INFER",
        f"{API}.CONSUMER.MSG.NEXT.INFER.m1-batch",
    ),
}
ADVISORY = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.INFER.m1-batch"
MAY_SUBSCRIBE = [
    *((role, f"_INBOX_{role}.x.*") for role in ROLES),
    ("worker", "cancel.*.*"),
    ("scheduler", ADVISORY),
    ("monitor", ADVISORY),
]
MAY_NOT_SUBSCRIBE = [
    *((role, f"_INBOX_{other}.>") for role in ROLES for other in ROLES if other != role),
    *((role, subject) for role in ROLES for subject in (">", "infer.>", "_INBOX.>", "result.>")),
    ("gateway", ADVISORY),
    ("worker", ADVISORY),
    ("publisher", ADVISORY),
]


class Caller:
    """A connection of one role, and what the server held against it."""

    def __init__(self, client: Client, violations: list[str]) -> None:
        self.client = client
        self.violations = violations

    async def is_refused(self) -> bool:
        """Say whether the server refused anything that was sent so far."""
        await self.client.flush(timeout=10)
        await self.client.flush(timeout=10)
        return bool(self.violations)


@asynccontextmanager
async def connected(server: NatsServer, role: str) -> AsyncIterator[Caller]:
    violations: list[str] = []

    async def on_error(error: Exception) -> None:
        violations.append(str(error))

    client = await nats.connect(server.url(role), inbox_prefix=f"_INBOX_{role}", error_cb=on_error)
    try:
        yield Caller(client, violations)
    finally:
        await client.close()


@pytest_asyncio.fixture
async def streams(nats_server: NatsServer) -> AsyncIterator[NatsServer]:
    async with connected(nats_server, "scheduler") as scheduler:
        js = scheduler.client.jetstream()
        for stream in STREAMS:
            await js.add_stream(stream)
        await js.add_consumer(
            "INFER", ConsumerConfig(durable_name="m1-batch", filter_subject="infer.m1.batch")
        )
        yield nats_server
        for stream in STREAMS:
            await js.delete_stream(str(stream.name))


@pytest.mark.parametrize(("role", "subject"), [(r, s) for r in ROLES for s in MAY_PUBLISH[r]])
async def test_a_role_may_publish_what_it_needs(nats_server: NatsServer, role: str, subject: str) -> None:
    async with connected(nats_server, role) as caller:
        await caller.client.publish(subject)
        assert not await caller.is_refused(), caller.violations


@pytest.mark.parametrize(("role", "subject"), [(r, s) for r in ROLES for s in MAY_NOT_PUBLISH[r]])
async def test_a_role_may_not_publish_more(nats_server: NatsServer, role: str, subject: str) -> None:
    async with connected(nats_server, role) as caller:
        await caller.client.publish(subject)
        assert await caller.is_refused()
        assert caller.client.is_connected  # a violation does not cost the connection


@pytest.mark.parametrize(("role", "subject"), MAY_SUBSCRIBE)
async def test_a_role_may_hear_what_it_needs(nats_server: NatsServer, role: str, subject: str) -> None:
    async with connected(nats_server, role) as caller:
        await caller.client.subscribe(subject)
        assert not await caller.is_refused(), caller.violations


@pytest.mark.parametrize(("role", "subject"), MAY_NOT_SUBSCRIBE)
async def test_a_role_may_not_hear_others(nats_server: NatsServer, role: str, subject: str) -> None:
    async with connected(nats_server, role) as caller:
        await caller.client.subscribe(subject)
        assert await caller.is_refused()


async def test_a_request_goes_from_publisher_through_worker_and_back(streams: NatsServer) -> None:
    async with connected(streams, "publisher") as publisher, connected(streams, "worker") as worker:
        inbox = publisher.client.new_inbox()
        replies = await publisher.client.subscribe(inbox)
        ack = await publisher.client.jetstream().publish(
            "infer.m1.batch", b"question", headers={"Ms-Reply-To": inbox}
        )
        pull = await worker.client.subscribe(worker.client.new_inbox())
        await worker.client.publish(
            f"{API}.CONSUMER.MSG.NEXT.INFER.m1-batch", b'{"batch":1}', reply=pull.subject
        )
        delivery = await pull.next_msg(10)
        await worker.client.publish((delivery.headers or {})["Ms-Reply-To"], b"answer")
        await delivery.ack_sync(timeout=10)
        assert (await replies.next_msg(10)).data == b"answer"
        assert ack.stream == "INFER"
        assert not worker.violations + publisher.violations
    async with connected(streams, "monitor") as monitor:
        answer = await monitor.client.request(f"{API}.STREAM.INFO.INFER", timeout=10)
        assert json.loads(answer.data)["state"]["messages"] == 0


async def test_a_publisher_reads_public_results_only(streams: NatsServer) -> None:
    async with connected(streams, "worker") as worker, connected(streams, "publisher") as publisher:
        for tenant in ("public", "acme"):
            await worker.client.jetstream().publish(f"result.{tenant}.j1.0", tenant.encode())
        got = await publisher.client.request(f"{API}.DIRECT.GET.RESULTS.result.public.j1.0", timeout=10)
        assert got.data == b"public"
        foreign = publisher.client.request(f"{API}.DIRECT.GET.RESULTS.result.acme.j1.0", timeout=0.5)
        with pytest.raises((asyncio.TimeoutError, nats.errors.TimeoutError, NoRespondersError)):
            await foreign
        assert publisher.violations


async def test_a_gateway_scans_the_results_of_a_job(streams: NatsServer) -> None:
    async with connected(streams, "gateway") as gateway:
        js = gateway.client.jetstream()
        for item in range(3):
            await js.publish(f"result.acme.j1.{item}", str(item).encode())
        scan = await js.pull_subscribe("result.acme.j1.*", stream="RESULTS")
        found = await scan.fetch(3, timeout=10)
        await scan.unsubscribe()
        assert [m.data for m in found] == [b"0", b"1", b"2"]
        assert not gateway.violations


async def test_a_worker_reads_cancel_marks_and_no_jobs(streams: NatsServer) -> None:
    async with connected(streams, "gateway") as gateway, connected(streams, "worker") as worker:
        await gateway.client.jetstream().publish("cancel.acme.j1")
        js = worker.client.jetstream()
        watcher = ConsumerConfig(name="w1", filter_subject="cancel.*.*", ack_policy=AckPolicy.NONE)
        await js.add_consumer("JOBS", watcher)
        marks = await js.pull_subscribe_bind("w1", "JOBS")
        assert [m.subject for m in await marks.fetch(1, timeout=10)] == ["cancel.acme.j1"]
        body = {
            "stream_name": "JOBS",
            "config": {"name": "w2", "filter_subject": "job.>", "ack_policy": "none"},
        }
        refusal = await worker.client.request(
            f"{API}.CONSUMER.CREATE.JOBS.w2.cancel.>", json.dumps(body).encode(), timeout=10
        )
        assert json.loads(refusal.data)["error"]["err_code"] == FILTER_MISMATCH
        assert not worker.violations
