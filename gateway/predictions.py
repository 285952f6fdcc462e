"""Answers one predict call: by waiting for it, or with a 202 for a job of one item."""

import asyncio
import math
from itertools import chain, repeat
from typing import Any

from litestar import Request, Response

from gateway.admission import Admission
from gateway.answers import accepted, predict_response
from gateway.bodies import Envelopes, read_body
from gateway.call import Call, call_of
from gateway.catalogue import Catalogue
from gateway.departures import Departures
from gateway.dispatch import Dispatcher
from gateway.errors import REPLAYED
from gateway.idempotency import Identity, read_fingerprint
from gateway.once import Once
from gateway.parsing import Asked, media_type, read_predict
from gateway.prefer import Preference, read_preference
from gateway.submission import NewJob, Submission
from infra.connections.replies import ReplyInbox
from infra.connections.results import Results
from schemas.envelope import Result, error_of
from schemas.errors import DeadlineExceeded
from schemas.jobs import JobRecord

_LOOK_S = (0.0, 0.02, 0.05, 0.1, 0.25)  # pauses between looks for a stored result
_FIRST_LOOK_S = (1.0,)  # of the first caller, who gets the reply


class Predictions:
    """The predict route, whatever form its body and its answer have."""

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        admission: Admission,
        departures: Departures,
        dispatcher: Dispatcher,
        submission: Submission,
        once: Once,
        results: Results,
        inbox: ReplyInbox,
        envelopes: Envelopes,
        max_body_bytes: int,
        default_timeout_s: float,
    ) -> None:
        self._catalogue = catalogue
        self._admission = admission
        self._departures = departures
        self._dispatcher = dispatcher
        self._submission = submission
        self._once = once
        self._results = results
        self._inbox = inbox
        self._envelopes = envelopes
        self._max_body_bytes = max_body_bytes
        self._default_timeout_s = default_timeout_s

    async def answer(self, request: Request[Any, Any, Any]) -> Response[bytes]:
        """Read, run and answer. Raises InferenceError and ClientGone."""
        call = call_of(request.scope)
        with self._admission.tenant(call):
            return await self._answer(call, request)

    async def _answer(self, call: Call, request: Request[Any, Any, Any]) -> Response[bytes]:
        fingerprint = read_fingerprint(request, call.tenant)
        media = media_type(request.headers)
        body = await read_body(request, max_bytes=self._max_body_bytes)
        asked = await read_predict(body, media, request.query_params, self._catalogue)
        call.model = asked.card.name
        accept = request.headers.get("accept", "")
        preference = read_preference(request.headers.getall("prefer", []))
        if fingerprint is None and not preference.as_job:
            return await self._live(call, request, asked, accept)
        job = NewJob(asked.card, asked.lane, asked.request.version, asked.timeout_ms)
        with self._admission.queue(call, asked.card, job.stored_lane):
            if fingerprint is None:
                return await self._as_job(call, asked, job, preference, accept=accept)
            fingerprint.add(body)
            return await self._once_only(call, asked, preference, accept, fingerprint.identity)

    async def _live(
        self, call: Call, request: Request[Any, Any, Any], asked: Asked, accept: str
    ) -> Response[bytes]:
        timeout_s = self._timeout_s(asked)
        with (
            self._admission.live(call, asked.card, timeout_s=timeout_s),
            self._admission.queue(call, asked.card, asked.lane),
            self._departures.watching(request),
        ):
            result = await self._dispatcher.infer(call, asked.request, timeout_s=timeout_s, lane=asked.lane)
        return await predict_response(result, accept, {})

    async def _as_job(
        self, call: Call, asked: Asked, job: NewJob, preference: Preference, *, accept: str
    ) -> Response[bytes]:
        headers = {"preference-applied": preference.applied}
        if not preference.wait_s:
            return accepted(await self._submission.submit(call, job, [asked.request]), headers)
        with self._inbox.expect() as expected:
            reply_to = expected.subject
            record = await self._submission.submit(call, job, [asked.request], reply_to=reply_to)
            try:
                async with asyncio.timeout(preference.wait_s):
                    reply = await expected.body
            except TimeoutError:
                return accepted(record, headers)
        headers["content-location"] = f"/v1/jobs/{record.job}"
        return await predict_response(await self._result(call, reply), accept, headers)

    async def _once_only(
        self, call: Call, asked: Asked, preference: Preference, accept: str, identity: Identity
    ) -> Response[bytes]:
        """Answer a request with an idempotency key: a job of one item, to which later callers attach."""
        wait_s = preference.wait_s or 0.0 if preference.as_job else self._timeout_s(asked)
        deadline_ms = asked.timeout_ms if preference.as_job else math.ceil(wait_s * 1000)
        job = NewJob(asked.card, asked.lane, asked.request.version, deadline_ms)
        give_up_at = asyncio.get_running_loop().time() + wait_s
        with self._inbox.expect() as expected:
            requests, reply_to = [asked.request], expected.subject
            record = await self._once.submit(call, job, requests, identity, reply_to=reply_to)
            headers = {REPLAYED: "true"} if call.replayed else {}
            if preference.as_job:
                headers["preference-applied"] = preference.applied
            if preference.as_job and not wait_s:
                return accepted(record, headers)
            reply = await self._reply_or_record(call, record, expected.body, give_up_at)
        if reply is None and preference.as_job:
            return accepted(record, headers)
        if reply is None:
            raise DeadlineExceeded("the request was not answered within its deadline")
        headers["content-location"] = f"/v1/jobs/{record.job}"
        return await predict_response(await self._result(call, reply, keep=True), accept, headers)

    async def _reply_or_record(
        self, call: Call, record: JobRecord, reply: asyncio.Future[bytes], give_up_at: float
    ) -> bytes | None:
        """Wait for the reply, which comes to the first caller only, or for the stored result."""
        loop = asyncio.get_running_loop()
        pauses_s = _LOOK_S if call.replayed else _FIRST_LOOK_S
        for pause_s in chain(pauses_s, repeat(pauses_s[-1])):
            left_s = give_up_at - loop.time()
            if left_s <= 0:
                break
            await asyncio.wait({reply}, timeout=min(pause_s, left_s))
            if reply.done():
                return reply.result()
            if stored := await self._results.read(call.tenant, record.job, 0):
                return stored.body
        return None

    def _timeout_s(self, asked: Asked) -> float:
        return self._default_timeout_s if asked.timeout_ms is None else asked.timeout_ms / 1000

    async def _result(self, call: Call, reply: bytes, *, keep: bool = False) -> Result:
        answer = await self._envelopes.unpack(call.tenant, reply, keep=keep)
        if isinstance(answer, Result):
            return answer
        raise error_of(answer)
