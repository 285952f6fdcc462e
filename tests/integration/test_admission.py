"""Admission over real servers: the limits of a tenant, and a full queue, which publishers meet as well."""

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import nats
import pytest

from infra.connections.settings import StreamSettings
from schemas.placement import BacklogReport
from schemas.subjects import Lane, infer_subject
from tests.integration.gateway_stand import Stand, standing, until
from tests.servers import NatsServer, ValkeyServer

pytestmark = pytest.mark.integration

Standing = Callable[..., AbstractAsyncContextManager[Stand]]
ONE = {"model": "echo", "inputs": {"x": [[1]]}}
SMALL = StreamSettings(max_requests=5, max_bytes=64 << 20, results_max_bytes=64 << 20)
FULL = 10077


@pytest.fixture
def stand(nats_server: NatsServer, valkey_server: ValkeyServer, tmp_path: Path) -> Standing:
    return partial(standing, nats_server, valkey_server, tmp_path)


async def rejections(s: Stand, reason: str) -> float:
    text = (await s.client.get("/metrics")).text
    name = f'model_serving_rejections_total{{reason="{reason}"}} '
    return float(next(line for line in text.splitlines() if line.startswith(name)).removeprefix(name))


async def test_a_tenant_over_its_share_is_refused_and_others_are_served(stand: Standing) -> None:
    async with stand(tenant_max_in_flight=2) as s:
        before = await rejections(s, "tenant_concurrency")
        s.gate = asyncio.Event()
        waiting = [asyncio.create_task(s.client.post("/v1/predict", json=ONE)) for _ in range(2)]
        await s.until_seen(1)
        refused = await s.client.post("/v1/jobs", json=ONE)
        assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
        assert refused.headers["retry-after"] == "1"
        other = await s.client.post("/v1/jobs", json=ONE, headers=s.other_tenant)
        assert other.status_code == 202
        s.gate.set()
        assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {200}
        assert await rejections(s, "tenant_concurrency") == before + 1


async def test_a_tenant_that_asks_too_often_is_told_when_to_come_again(stand: Standing) -> None:
    async with stand(tenant_requests_per_s=0.5) as s:
        statuses = [(await s.client.post("/v1/predict", json=ONE)) for _ in range(2)]
        assert [answer.status_code for answer in statuses] == [200, 429]
        assert statuses[1].headers["retry-after"] == "2"
        assert (await s.client.get("/v1/models")).status_code == 200


async def test_a_full_queue_says_how_long_it_takes_and_publishers_meet_the_same_limit(
    stand: Standing, nats_server: NatsServer
) -> None:
    async with stand(stream_settings=SMALL) as s:
        s.gate = asyncio.Event()
        report = BacklogReport(model="echo", lane=Lane.BATCH, waiting=90, per_s=2.0)
        await s.placement.report_backlog([report])

        async def known() -> bool:
            refused = await s.client.post("/v1/jobs", json=ONE)
            return refused.status_code == 429 and refused.headers["retry-after"] == "45"

        await until(known)
        publisher = await nats.connect(nats_server.url("publisher"), inbox_prefix="_INBOX_publisher")
        try:
            ack = await publisher.request(infer_subject("echo", Lane.BATCH), b"{}", timeout=5)
        finally:
            await publisher.close()
        assert json.loads(ack.data)["error"]["err_code"] == FULL
        s.gate.set()
