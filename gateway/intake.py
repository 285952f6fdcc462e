"""Takes jobs: a JSON body of one or many items, or a JSONL upload."""

from dataclasses import replace
from typing import Any

from litestar import Request, Response

from gateway.admission import Admission
from gateway.answers import accepted
from gateway.bodies import body_chunks, read_body
from gateway.call import Call, call_of
from gateway.catalogue import Catalogue
from gateway.errors import REPLAYED
from gateway.idempotency import Fingerprint, read_fingerprint
from gateway.once import Once
from gateway.parsing import JSONL, media_type, read_job
from gateway.submission import NewJob, Submission
from gateway.uploads import Uploads
from gateway.webhooks import WebhookCheck
from schemas.api import UploadQuery
from schemas.errors import UnsupportedMedia
from schemas.headers import JSON
from schemas.jobs import JobRecord


class JobIntake:
    """The route that submits jobs, whatever form they have."""

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        admission: Admission,
        submission: Submission,
        once: Once,
        uploads: Uploads,
        webhooks: WebhookCheck,
        max_body_bytes: int,
        max_items: int,
    ) -> None:
        self._catalogue = catalogue
        self._admission = admission
        self._submission = submission
        self._once = once
        self._uploads = uploads
        self._webhooks = webhooks
        self._max_body_bytes = max_body_bytes
        self._max_items = max_items

    async def submit(self, request: Request[Any, Any, Any]) -> Response[bytes]:
        """Answer 202 when every item is stored. Raises InferenceError and ClientGone."""
        call = call_of(request.scope)
        with self._admission.tenant(call):
            return await self._submit(call, request)

    async def _submit(self, call: Call, request: Request[Any, Any, Any]) -> Response[bytes]:
        media, fingerprint = media_type(request.headers), read_fingerprint(request, call.tenant)
        if media in JSONL:
            return _stored(call, await self._upload(call, request, fingerprint))
        if media == JSON:
            return _stored(call, await self._whole(call, request, fingerprint))
        raise UnsupportedMedia(f"must be {JSON} or {JSONL[0]}", field="content-type")

    async def _upload(
        self, call: Call, request: Request[Any, Any, Any], fingerprint: Fingerprint | None
    ) -> JobRecord:
        asked = UploadQuery.model_validate(dict(request.query_params))
        card = await self._catalogue.card(asked.model, asked.version)
        call.model = card.name
        job = NewJob(card, asked.priority, asked.version, asked.timeout_ms)
        if asked.webhook is not None:
            job = replace(
                job, webhook=await self._webhooks.allow(call.tenant, asked.webhook, field="webhook")
            )
        with self._admission.queue(call, card, job.stored_lane):
            return await self._uploads.receive(call, job, body_chunks(request), fingerprint)

    async def _whole(
        self, call: Call, request: Request[Any, Any, Any], fingerprint: Fingerprint | None
    ) -> JobRecord:
        body = await read_body(request, max_bytes=self._max_body_bytes)
        asked = await read_job(body, self._catalogue, max_items=self._max_items)
        call.model = asked.card.name
        said = asked.body
        job = NewJob(asked.card, said.priority, said.version, said.timeout_ms, said.metadata)
        if said.webhook is not None:
            url = await self._webhooks.allow(call.tenant, said.webhook.url, field="webhook.url")
            job = replace(job, webhook=url)
        with self._admission.queue(call, job.card, job.stored_lane):
            if fingerprint is None:
                return await self._submission.submit(call, job, asked.requests)
            fingerprint.add(body)
            return await self._once.submit(call, job, asked.requests, fingerprint.identity)


def _stored(call: Call, record: JobRecord) -> Response[bytes]:
    return accepted(record, {REPLAYED: "true"} if call.replayed else {})
