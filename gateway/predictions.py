"""Answers one predict call: by waiting for it, or with a 202 for a job of one item."""

import asyncio
from typing import Any

from litestar import Request, Response

from gateway.answers import accepted, predict_response
from gateway.bodies import Envelopes, read_body
from gateway.call import Call, call_of
from gateway.catalogue import Catalogue
from gateway.dispatch import Dispatcher
from gateway.parsing import Asked, media_type, read_predict
from gateway.prefer import Preference, read_preference
from gateway.submission import NewJob, Submission
from infra.connections.replies import ReplyInbox
from schemas.envelope import Result, error_of


class Predictions:
    """The predict route, whatever form its body and its answer have."""

    def __init__(
        self,
        catalogue: Catalogue,
        dispatcher: Dispatcher,
        submission: Submission,
        inbox: ReplyInbox,
        envelopes: Envelopes,
        *,
        max_body_bytes: int,
        default_timeout_s: float,
    ) -> None:
        self._catalogue = catalogue
        self._dispatcher = dispatcher
        self._submission = submission
        self._inbox = inbox
        self._envelopes = envelopes
        self._max_body_bytes = max_body_bytes
        self._default_timeout_s = default_timeout_s

    async def answer(self, request: Request[Any, Any, Any]) -> Response[bytes]:
        """Read, run and answer. Raises InferenceError and ClientGone."""
        call = call_of(request.scope)
        media = media_type(request.headers)
        body = await read_body(request, max_bytes=self._max_body_bytes)
        asked = await read_predict(body, media, request.query_params, self._catalogue)
        call.model = asked.card.name
        accept = request.headers.get("accept", "")
        preference = read_preference(request.headers.getall("prefer", []))
        if preference.as_job:
            return await self._as_job(call, asked, preference, accept)
        timeout_s = self._default_timeout_s if asked.timeout_ms is None else asked.timeout_ms / 1000
        result = await self._dispatcher.infer(call, asked.request, timeout_s=timeout_s, lane=asked.lane)
        return await predict_response(result, accept, {})

    async def _as_job(self, call: Call, asked: Asked, preference: Preference, accept: str) -> Response[bytes]:
        job = NewJob(asked.card, asked.lane, asked.request.version, asked.timeout_ms)
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

    async def _result(self, call: Call, reply: bytes) -> Result:
        answer = await self._envelopes.unpack(call.tenant, reply, keep=False)
        if isinstance(answer, Result):
            return answer
        raise error_of(answer)
