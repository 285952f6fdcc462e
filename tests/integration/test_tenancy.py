"""Whose a request is: a gateway proves it, a worker asks for the proof, and a publisher can not forge it."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import nats
import numpy as np
import pytest
from nats.aio.client import Client as NatsClient

from schemas.envelope import Failure, InferRequest, decode_reply, encode_request
from schemas.headers import JOB, REPLY_TO, TENANT
from schemas.subjects import Lane, infer_subject
from schemas.tensors import from_array
from tests.faults.chaos_model import ANSWER
from tests.faults.stand import KEY, MODEL, Client, System
from tests.servers import NatsServer, ValkeyServer

pytestmark = pytest.mark.integration


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    with NatsServer(tmp_path / "nats") as server, ValkeyServer(tmp_path / "valkey") as valkey:
        environment = {"API_KEYS": f"acme:{KEY}", "TENANT_SIGNING_KEY": secrets.token_hex(16)}
        running = System(tmp_path, server, valkey, environment)
        running.install_model()
        running.start("scheduler")
        running.start("workers")
        try:
            yield running
        finally:
            running.stop()


@pytest.fixture
def client(system: System) -> Iterator[Client]:
    client = system.start_gateway()
    with client.http:
        client.until_served()
        yield client


async def test_a_tenant_is_served_and_a_publisher_that_names_it_is_refused(
    system: System, client: Client
) -> None:
    job = client.submit([[1, ANSWER, 0]])
    assert client.ended(job)["state"] == "succeeded"
    forged = "f" * 32
    publisher = await nats.connect(system.nats.url("publisher"), inbox_prefix="_INBOX_publisher")
    try:
        refusal = await _publish(publisher, {TENANT: "acme", JOB: forged})
    finally:
        await publisher.close()
    assert isinstance(refusal, Failure)
    assert (refusal.code, refusal.field) == ("invalid_input", TENANT)
    assert client.http.get(f"/v1/jobs/{forged}").status_code == 404
    assert system.starts()[2] == 0


async def _publish(publisher: NatsClient, headers: dict[str, str]) -> object:
    inbox = publisher.new_inbox()
    replies = await publisher.subscribe(inbox)
    request = InferRequest(model=MODEL, inputs=(from_array("x", np.array([[2.0, ANSWER, 0.0]])),))
    subject = infer_subject(MODEL, Lane.INTERACTIVE)
    await publisher.publish(subject, encode_request(request), headers=headers | {REPLY_TO: inbox})
    return decode_reply((await replies.next_msg(timeout=15)).data)
