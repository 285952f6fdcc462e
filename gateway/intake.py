"""Takes jobs: a JSON body of one or many items, or a JSONL upload."""

from dataclasses import replace
from typing import Any

from litestar import Request, Response

from gateway.answers import accepted
from gateway.bodies import body_chunks, read_body
from gateway.call import Call, call_of
from gateway.catalogue import Catalogue
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
        submission: Submission,
        uploads: Uploads,
        webhooks: WebhookCheck,
        *,
        max_body_bytes: int,
        max_items: int,
    ) -> None:
        self._catalogue = catalogue
        self._submission = submission
        self._uploads = uploads
        self._webhooks = webhooks
        self._max_body_bytes = max_body_bytes
        self._max_items = max_items

    async def submit(self, request: Request[Any, Any, Any]) -> Response[bytes]:
        """Answer 202 when every item is stored. Raises InferenceError and ClientGone."""
        call, media = call_of(request.scope), media_type(request.headers)
        if media in JSONL:
            return accepted(await self._upload(call, request))
        if media == JSON:
            return accepted(await self._whole(call, request))
        raise UnsupportedMedia(f"must be {JSON} or {JSONL[0]}", field="content-type")

    async def _upload(self, call: Call, request: Request[Any, Any, Any]) -> JobRecord:
        asked = UploadQuery.model_validate(dict(request.query_params))
        card = await self._catalogue.card(asked.model, asked.version)
        call.model = card.name
        job = NewJob(card, asked.priority, asked.version, asked.timeout_ms)
        if asked.webhook is not None:
            job = replace(
                job, webhook=await self._webhooks.allow(call.tenant, asked.webhook, field="webhook")
            )
        return await self._uploads.receive(call, job, body_chunks(request))

    async def _whole(self, call: Call, request: Request[Any, Any, Any]) -> JobRecord:
        body = await read_body(request, max_bytes=self._max_body_bytes)
        asked = await read_job(body, self._catalogue, max_items=self._max_items)
        call.model = asked.card.name
        said = asked.body
        job = NewJob(asked.card, said.priority, said.version, said.timeout_ms, said.metadata)
        if said.webhook is not None:
            url = await self._webhooks.allow(call.tenant, said.webhook.url, field="webhook.url")
            job = replace(job, webhook=url)
        return await self._submission.submit(call, job, asked.requests)
