"""Dead letters over HTTP: for admins only, from a request that is given up to its second chance."""

import base64
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import SecretStr

from infra.connections.clients import Role
from infra.connections.dead import ORIGINAL_BYTES, ORIGINAL_ID, ORIGINAL_SUBJECT, bury
from infra.connections.reading import Stored
from infra.connections.results import Results
from infra.connections.streams import consumer_config
from infra.connections.tenants import Tenancy
from scheduler.dead_letters import Advisories
from scheduler.endings import Endings
from schemas.envelope import InferRequest, encode_request
from schemas.headers import DEADLINE_MS, RequestHeaders, write_headers
from schemas.subjects import Lane, infer_subject
from schemas.tensors import Tensor, from_array
from tests.integration.broker_stand import connected
from tests.integration.gateway_stand import KEY, SIGNING_KEY, Stand, echo, standing
from tests.integration.test_given_up import running
from tests.servers import NatsServer, ValkeyServer
from tests.waiting import until

pytestmark = pytest.mark.integration

Standing = Callable[[], AbstractAsyncContextManager[Stand]]

ADMIN = "a-key-of-an-admin-0123456789"
AS_ADMIN = {"authorization": f"Bearer {ADMIN}"}
TENANCY = Tenancy(SIGNING_KEY)
ROUTES = [
    ("GET", "/v1/dead"),
    ("GET", "/v1/dead/1"),
    ("POST", "/v1/dead/1/replay"),
    ("DELETE", "/v1/dead/1"),
    ("DELETE", "/v1/dead?model=echo"),
    ("GET", "/v1/dead/"),
    ("GET", "//v1/dead"),
]


@pytest.fixture
def stand(nats_server: NatsServer, valkey_server: ValkeyServer, tmp_path: Path) -> Standing:
    keys = SecretStr(f"root:{ADMIN}")
    return partial(standing, nats_server, valkey_server, tmp_path, admin_api_keys=keys)


async def ask(s: Stand, method: str, path: str, *, status: int = 200, **params: Any) -> dict[str, Any]:
    """Ask as an admin."""
    answer = await s.client.request(method, path, headers=AS_ADMIN, params=params)
    assert answer.status_code == status, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def letters(s: Stand, **params: Any) -> list[dict[str, Any]]:
    return list((await ask(s, "GET", "/v1/dead", **params))["letters"])


def an_echo(number: float = 1.0) -> bytes:
    return encode_request(InferRequest(model="echo", inputs=(a_tensor(number),)))


def a_tensor(number: float) -> Tensor:
    return from_array("x", np.array([[number]], dtype=np.float32))


async def given_up(s: Stand, *, seq: int = 1, subject: str = "", body: bytes = b"", **headers: Any) -> None:
    """Bury a message as a worker does."""
    written = TENANCY.write(RequestHeaders(**({"id": f"r{seq}", "tenant": "acme"} | headers)))
    message = Stored(subject or infer_subject("echo", Lane.BATCH), written, body or an_echo(seq), seq)
    await bury(s.requests, "INFER", message, f"poison: the {seq}.")


async def test_a_poison_job_fails_is_shown_to_admins_runs_again_and_is_purged(
    stand: Standing, nats_server: NatsServer
) -> None:
    async with stand() as s:
        s.behaviour = lambda _: None  # as if every worker died with it
        async with connected(nats_server, Role.SCHEDULER) as link:
            config = consumer_config("echo", Lane.BATCH, s.streams._settings)
            config |= {"max_deliver": 2, "ack_wait": 300_000_000}
            await link.requests.api(
                f"CONSUMER.CREATE.INFER.{config['durable_name']}.{config['filter_subject']}",
                {"stream_name": "INFER", "config": config},
            )
            results = Results(link.connection, link.requests, timeout_s=5)
            endings = Endings(link.connection, link.requests, s.streams, results, read=TENANCY.read)
            async with running(Advisories(link.connection, link.requests, s.streams, endings).run()):
                job = (await s.client.post("/v1/jobs", json={"model": "echo", "inputs": {"x": [[7]]}})).json()
                failed = await s.until_final(job["id"])
        assert (failed["state"], failed["result"]["error"]["code"]) == ("failed", "poison")
        assert failed["result"]["attempts"] == 2
        assert "2 times" in failed["result"]["error"]["message"]

        async def listed() -> bool:
            return bool(await letters(s))

        await until(listed, "the dead letter")
        (letter,) = await letters(s, model="echo")
        assert (letter["model"], letter["tenant"], letter["job"]) == ("echo", "acme", job["id"])
        assert (letter["attempts"], letter["subject"]) == (2, "infer.echo.batch")
        assert letter["reason"] == f"poison: {failed['result']['error']['message']}"

        s.behaviour = echo
        again = await ask(s, "POST", f"/v1/dead/{letter['seq']}/replay", status=202)
        assert (again["tenant"], again["model"]) == ("acme", "echo")
        assert again["job"] != job["id"]
        succeeded = await s.until_final(again["job"])
        assert succeeded["result"]["outputs"][0]["data"] == [[7]]
        assert succeeded["metadata"] == {"dead_letter": str(letter["seq"])}
        assert (await s.until_final(job["id"]))["state"] == "failed"  # an answer never changes
        assert await ask(s, "DELETE", f"/v1/dead/{letter['seq']}") == {"purged": 1}
        assert await letters(s) == []


async def test_letters_come_newest_first_by_pages_and_by_model(stand: Standing) -> None:
    async with stand() as s:
        for seq in range(1, 8):
            model = "echo" if seq % 2 else "org/files.v1"
            await given_up(s, seq=seq, subject=infer_subject(model, Lane.BATCH))
        page = await ask(s, "GET", "/v1/dead", limit=3)
        assert [letter["seq"] for letter in page["letters"]] == [7, 6, 5]
        page = await ask(s, "GET", "/v1/dead", limit=10, after=page["next"])
        assert ([letter["seq"] for letter in page["letters"]], page.get("next")) == ([4, 3, 2, 1], None)
        of_files = await letters(s, model="org/files.v1")
        assert [(letter["seq"], letter["model"]) for letter in of_files] == [
            (6, "org/files.v1"),
            (4, "org/files.v1"),
            (2, "org/files.v1"),
        ]
        assert await letters(s, model="another") == []


async def test_the_newest_of_many_are_found_behind_many_of_another_model(stand: Standing) -> None:
    async with stand() as s:
        await given_up(s, seq=1, subject=infer_subject("org/files.v1", Lane.BATCH))
        for seq in range(2, 400):
            await given_up(s, seq=seq, body=b"x")
        (oldest,) = await letters(s, model="org/files.v1")
        assert oldest["seq"] == 1


async def test_a_body_is_shown_only_if_it_is_asked_for(stand: Standing) -> None:
    async with stand() as s:
        await given_up(s, body=b"somebody's own", job="j" * 16, item=3)
        shown = await ask(s, "GET", "/v1/dead/1")
        assert shown["size_bytes"] == len(b"somebody's own")
        assert shown.get("body") is None
        assert "Ms-Signature" not in shown["headers"]  # it proves whose request that is
        assert (shown["headers"]["Ms-Item"], shown["headers"][ORIGINAL_ID]) == ("3", "r1")
        assert "somebody" not in json.dumps([shown, await letters(s)])
        with_body = await ask(s, "GET", "/v1/dead/1", body="true")
        assert base64.b64decode(with_body["body"]) == b"somebody's own"


async def test_a_replay_keeps_what_was_asked_and_is_a_job_on_a_lane_that_is_stored(stand: Standing) -> None:
    async with stand() as s:
        await given_up(
            s,
            subject=infer_subject("echo", Lane.LIVE),
            deadline_ms=60_000,
            reply_to="_INBOX_publisher.gone",
        )
        jobs = [(await ask(s, "POST", "/v1/dead/1/replay", status=202))["job"] for _ in range(2)]
        assert len(set(jobs)) == 2
        for job in jobs:
            assert (await s.until_final(job))["state"] == "succeeded"
        headers = [headers for headers, _ in s.seen]
        assert {h.deadline_ms for h in headers} == {60_000}
        assert {h.reply_to for h in headers} == {None}
        assert {h.job for h in headers} == set(jobs)
        assert "infer.echo.interactive" in s.published


@pytest.mark.parametrize(
    ("wrong", "status", "told"),
    [
        ({ORIGINAL_SUBJECT: "infer.unheard-of.batch"}, 404, "unheard-of"),
        ({ORIGINAL_SUBJECT: "dead.echo"}, 400, "infer.<model>.<lane>"),
        ({ORIGINAL_SUBJECT: "job.acme.x"}, 400, "infer.<model>.<lane>"),
        ({ORIGINAL_BYTES: "2000000"}, 400, "not kept"),
        ({DEADLINE_MS: "soon"}, 400, "whole number"),
        ({"Ms-Tenant": "umbrella"}, 400, "not signed"),
    ],
)
async def test_what_can_not_run_is_not_replayed(
    stand: Standing, wrong: dict[str, str], status: int, told: str
) -> None:
    async with stand() as s:
        headers = write_headers(RequestHeaders(id="x")) | {ORIGINAL_SUBJECT: "infer.echo.batch"} | wrong
        ack = await s.requests.publish("dead.echo", an_echo(), headers)
        problem = await ask(s, "POST", f"/v1/dead/{ack.seq}/replay", status=status)
        assert told in problem["detail"]
        assert not [subject for subject in s.published if subject.startswith(("infer.", "job."))]


async def test_purging_takes_what_is_named_and_nothing_by_default(stand: Standing) -> None:
    async with stand() as s:
        for seq in range(1, 5):
            await given_up(
                s, seq=seq, subject=infer_subject("echo" if seq < 3 else "org/files.v1", Lane.BATCH)
            )
        assert "nothing is deleted by default" in (await ask(s, "DELETE", "/v1/dead", status=400))["detail"]
        assert await ask(s, "DELETE", "/v1/dead", older_than_s=3600) == {"purged": 0}
        assert await ask(s, "DELETE", "/v1/dead", model="echo") == {"purged": 2}
        assert [letter["seq"] for letter in await letters(s)] == [4, 3]
        assert await ask(s, "DELETE", "/v1/dead", older_than_s=0) == {"purged": 2}
        await ask(s, "DELETE", "/v1/dead/1", status=404)
        await ask(s, "GET", "/v1/dead/1", status=404)
        await ask(s, "POST", "/v1/dead/99/replay", status=404)
        for seq in (0, -1, 10**30):
            await ask(s, "GET", f"/v1/dead/{seq}", status=404)
            await ask(s, "DELETE", f"/v1/dead/{seq}", status=404)
        for age in ("nan", "inf", "-1", "1e300", "old"):
            await ask(s, "DELETE", "/v1/dead", status=400, older_than_s=age)


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_only_an_admin_key_opens_the_dead_letters(stand: Standing, method: str, path: str) -> None:
    async with stand() as s:

        async def status_of(**headers: str) -> int:
            request = s.client.build_request(method, f"http://gateway{path}")
            request.headers.pop("authorization")
            request.headers.update(headers)
            return (await s.client.send(request)).status_code

        assert await status_of() == 401
        assert await status_of(authorization="Bearer some-other-key-0123456789") == 401
        assert await status_of(authorization=f"Bearer {KEY}") == 403
        assert await status_of(**AS_ADMIN) not in (401, 403)


async def test_an_admin_key_opens_nothing_of_a_tenants(stand: Standing) -> None:
    async with stand() as s:
        for method, path in (("GET", "/v1/jobs"), ("GET", "/v1/models"), ("POST", "/v1/predict")):
            answer: httpx.Response = await s.client.request(method, path, headers=AS_ADMIN)
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


async def test_without_admin_keys_nobody_is_let_in_and_told_why(
    nats_server: NatsServer, valkey_server: ValkeyServer, tmp_path: Path
) -> None:
    async with standing(nats_server, valkey_server, tmp_path) as s:
        answer = await s.client.get("/v1/dead")
        assert answer.status_code == 403
        assert "ADMIN_API_KEYS" in answer.json()["detail"]
        assert (await s.client.get("/v1/dead", headers={"authorization": ""})).status_code == 401


async def test_without_keys_for_callers_an_admin_still_needs_one(
    nats_server: NatsServer, valkey_server: ValkeyServer, tmp_path: Path
) -> None:
    keys = SecretStr(f"root:{ADMIN}")
    async with standing(nats_server, valkey_server, tmp_path, auth="off", admin_api_keys=keys) as s:
        for shown in ("", "Basic x", f"Bearer {KEY}"):
            headers = {"authorization": shown}
            assert (await s.client.get("/v1/dead", headers=headers)).status_code == 401
            assert (await s.client.get("/v1/jobs", headers=headers)).status_code == 200
        assert await letters(s) == []
