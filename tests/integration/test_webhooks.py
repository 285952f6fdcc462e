"""Webhooks of jobs: over a real broker, to a real HTTP server."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
import pytest_asyncio

from infra.connections.clients import Role
from infra.connections.jobs import Jobs
from schemas.jobs import ItemState, JobState
from schemas.webhooks import Outcome, WebhookRecord, job_event, read_secret, signed_headers
from tests.integration.broker_stand import connected, declared
from tests.integration.duties_stand import SECRET, TENANT, Gateway, Heard, Receiver, duties, gateway
from tests.integration.gateway_stand import standing
from tests.servers import NatsServer, ValkeyServer
from tests.waiting import until

pytestmark = pytest.mark.integration

JOB = "job-0123456789abcdef"


@pytest_asyncio.fixture
async def theirs(nats_server: NatsServer) -> AsyncIterator[Gateway]:
    """What a gateway stores, in streams that are empty."""
    async with declared(nats_server), gateway(nats_server) as connected:
        yield connected


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver that always answers 200."""
    async with Receiver().listening() as listening:
        yield listening


async def told(theirs: Gateway) -> WebhookRecord:
    record = await theirs.jobs.webhook(TENANT, JOB)
    assert record is not None
    return record


def is_signed(heard: Heard) -> bool:
    timestamp = int(heard.headers["webhook-timestamp"])
    event = heard.headers["webhook-id"]
    signed = signed_headers(event, heard.body, key=read_secret(SECRET), timestamp=timestamp)
    return signed.items() <= heard.headers.items()


async def test_the_end_of_a_job_is_told_once_and_signed(
    nats_server: NatsServer, theirs: Gateway, receiver: Receiver
) -> None:
    await theirs.submit(JOB, items=2, webhook=receiver.url)
    async with duties(nats_server) as scheduler:
        await scheduler.tell()
        await theirs.end(JOB, 0)
        await scheduler.tell(ahead_s=120)
        assert receiver.heard == []  # one item has not ended
        await theirs.end(JOB, 1, ItemState.FAILED)
        await scheduler.tell(ahead_s=240)
        await scheduler.tell(ahead_s=360)
        assert len(scheduler.of.open_jobs) == 0
    async with duties(nats_server) as restarted:
        await restarted.tell()
        assert len(restarted.of.open_jobs) == 0
    [heard] = receiver.heard
    assert is_signed(heard)
    assert heard.path == "/told"
    assert heard.headers["content-type"] == "application/json"
    assert heard.event["id"] == heard.headers["webhook-id"]
    assert heard.event["type"] == "job.failed"
    assert heard.event["data"]["id"] == JOB
    assert heard.event["data"]["counts"]["succeeded"] == heard.event["data"]["counts"]["failed"] == 1
    assert (await told(theirs)).outcome is Outcome.DELIVERED


async def test_a_failed_try_is_repeated_as_the_same_event_also_by_another_scheduler(
    nats_server: NatsServer, theirs: Gateway
) -> None:
    async with Receiver("500 No", "503 No").listening() as receiver:
        await theirs.submit(JOB, webhook=receiver.url)
        await theirs.end(JOB)
        async with duties(nats_server) as first:
            await first.tell()
            await first.tell()
        assert (await told(theirs)).outcome is Outcome.PENDING
        async with duties(nats_server) as second:
            await second.tell()
    assert len({heard.headers["webhook-id"] for heard in receiver.heard}) == 1
    assert len({heard.body for heard in receiver.heard}) == 1
    assert all(map(is_signed, receiver.heard))
    record = await told(theirs)
    assert (record.outcome, record.attempts, len(receiver.heard)) == (Outcome.DELIVERED, 3, 3)


async def test_what_was_to_be_told_when_the_scheduler_died_is_told_by_the_next(
    nats_server: NatsServer, theirs: Gateway, receiver: Receiver
) -> None:
    await theirs.submit(JOB, webhook=receiver.url)
    await theirs.end(JOB)
    event = job_event(JOB, JobState.SUCCEEDED, {"total": 1}, created_at=1_700_000_000)
    async with connected(nats_server, Role.SCHEDULER) as dying:
        await Jobs(dying.connection, dying.requests, timeout_s=2).put_webhook(TENANT, JOB, event)
    async with duties(nats_server) as scheduler:
        await scheduler.tell()
    assert [heard.body for heard in receiver.heard] == [event.body]


async def test_a_wait_after_a_failure_outlives_a_restart(nats_server: NatsServer, theirs: Gateway) -> None:
    async with Receiver("500 No").listening() as receiver:
        await theirs.submit(JOB, webhook=receiver.url)
        await theirs.end(JOB)
        async with duties(nats_server, retry_s=100.0) as first:
            await first.tell()
        async with duties(nats_server, retry_s=100.0) as second:
            await second.tell(ahead_s=60)
            assert len(receiver.heard) == 1
            await second.tell(ahead_s=130)
            assert len(receiver.heard) == 2


@pytest.mark.parametrize(("status", "outcome"), [("302 Found", Outcome.GIVEN_UP), ("410 Gone", Outcome.GONE)])
async def test_a_redirect_is_a_failure_and_410_is_the_end(
    nats_server: NatsServer, theirs: Gateway, status: str, outcome: Outcome
) -> None:
    async with Receiver(status, status).listening() as receiver:
        await theirs.submit(JOB, webhook=receiver.url)
        await theirs.end(JOB)
        async with duties(nats_server, tries=2) as scheduler:
            for _ in range(4):
                await scheduler.tell()
            assert len(scheduler.of.open_jobs) == 0
    assert (await told(theirs)).outcome is outcome
    assert {heard.path for heard in receiver.heard} == {"/told"}
    assert len(receiver.heard) == (2 if outcome is Outcome.GIVEN_UP else 1)


async def test_a_receiver_that_moved_to_a_private_address_is_not_called(
    nats_server: NatsServer, theirs: Gateway, receiver: Receiver
) -> None:
    await theirs.submit(JOB, webhook=f"http://hooks.example:{receiver.port}/")
    await theirs.end(JOB)
    async with duties(
        nats_server, allow_private=False, tries=1, resolve=lambda _host, _port: ["127.0.0.1"]
    ) as scheduler:
        await scheduler.tell()
    assert receiver.heard == []
    assert (await told(theirs)).outcome is Outcome.GIVEN_UP


async def test_a_job_that_nobody_runs_is_told_as_expired(
    nats_server: NatsServer, theirs: Gateway, receiver: Receiver
) -> None:
    await theirs.submit(JOB, items=2, deadline_ms=1, webhook=receiver.url)
    async with duties(nats_server) as scheduler, scheduler.running():
        scheduler.clock.ahead_s = 10
        await until(lambda: len(receiver.heard) > 0, "the webhook to be told")

        async def noted() -> bool:
            return (await told(theirs)).outcome is Outcome.DELIVERED

        await until(noted, "the delivery to be noted")
    assert receiver.heard[0].event["type"] == "job.expired"


async def test_a_cancelled_upload_is_told_as_cancelled(
    nats_server: NatsServer, theirs: Gateway, receiver: Receiver
) -> None:
    await theirs.submit(JOB, items=0, receiving=True, webhook=receiver.url)
    async with duties(nats_server) as scheduler:
        await scheduler.tell()
        assert receiver.heard == []
        await scheduler.end_due(ahead_s=4000)
        await scheduler.tell(ahead_s=4100)
    assert receiver.heard[0].event["type"] == "job.cancelled"


class TestOverHttp:
    """What callers of the gateway see of it."""

    @pytest.fixture(autouse=True)
    def secrets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Only acme has a secret."""
        monkeypatch.setenv("WEBHOOK_SECRETS", f"acme:{SECRET}")

    @staticmethod
    def a_job(webhook: str) -> Mapping[str, object]:
        return {"model": "echo", "inputs": {"x": [[1.0]]}, "webhook": {"url": webhook}}

    async def test_a_url_that_leads_inside_is_refused_naming_the_field(
        self, nats_server: NatsServer, valkey_server: ValkeyServer, tmp_path: Path
    ) -> None:
        inside = "http://169.254.169.254/latest"
        async with standing(nats_server, valkey_server, tmp_path) as stand:
            answer = await stand.client.post("/v1/jobs", json=self.a_job(inside))
            assert (answer.status_code, answer.json()["field"]) == (400, "webhook.url")
            assert "public internet" in answer.json()["detail"]
            lines = await stand.client.post(
                "/v1/jobs",
                params={"model": "echo", "webhook": inside},
                content=b'{"inputs": {"x": [[1.0]]}}\n',
                headers={"content-type": "application/jsonl"},
            )
            assert (lines.status_code, lines.json()["field"]) == (400, "webhook")
            assert (await stand.client.get("/v1/jobs")).json()["jobs"] == []

    async def test_a_tenant_without_a_secret_is_told_so(
        self, nats_server: NatsServer, valkey_server: ValkeyServer, tmp_path: Path
    ) -> None:
        async with standing(nats_server, valkey_server, tmp_path) as stand:
            answer = await stand.client.post(
                "/v1/jobs", json=self.a_job("https://hooks.example/"), headers=stand.other_tenant
            )
            assert (answer.status_code, answer.json()["field"]) == (400, "webhook.url")
            assert "no secret" in answer.json()["detail"]

    async def test_the_job_shows_whether_its_webhook_was_told(
        self,
        nats_server: NatsServer,
        valkey_server: ValkeyServer,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        receiver: Receiver,
    ) -> None:
        monkeypatch.setenv("WEBHOOK_ALLOW_PRIVATE", "true")
        untold = {"url": receiver.url, "delivered": False, "attempts": 0}
        async with standing(nats_server, valkey_server, tmp_path) as stand:
            whole = await stand.client.post("/v1/jobs", json=self.a_job(receiver.url))
            assert (whole.status_code, whole.json()["webhook"]) == (202, untold)
            lines = await stand.client.post(
                "/v1/jobs",
                params={"model": "echo", "webhook": receiver.url},
                content=b'{"inputs": {"x": [[1.0]]}}\n' * 3,
                headers={"content-type": "application/jsonl"},
            )
            assert lines.status_code == 202
            ids = [whole.json()["id"], lines.json()["id"]]
            for job in ids:
                assert (await stand.until_final(job))["webhook"] == untold
            async with duties(nats_server) as scheduler:
                await scheduler.tell()
            for job in ids:
                shown = (await stand.client.get(f"/v1/jobs/{job}")).json()
                assert shown["webhook"] == {"url": receiver.url, "delivered": True, "attempts": 1}
            assert {heard.event["data"]["id"] for heard in receiver.heard} == set(ids)
            assert {heard.event["type"] for heard in receiver.heard} == {"job.succeeded"}
