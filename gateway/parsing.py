"""A body becomes an InferRequest: JSON, msgpack, or a plain image or binary body.

The gateway supplies what the model's card says (dtypes, the name of the raw input) and checks that the
body is well-formed. Whether it fits the model is for the worker to say, who alone knows.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, TypeVarTuple

from pydantic import BaseModel

from gateway.catalogue import Catalogue
from schemas.api import JobBody, JobItem, PredictBody, PredictQuery
from schemas.envelope import InferRequest, decode_request, json_inputs
from schemas.errors import InvalidInput, TooLarge, UnsupportedMedia
from schemas.headers import JSON, MSGPACK
from schemas.json_tensors import read_json
from schemas.models import ModelCard
from schemas.subjects import Lane
from schemas.tensors import BYTES, Tensor, check_tensor, pack_bytes

R = TypeVar("R")
Ts = TypeVarTuple("Ts")
B = TypeVar("B", bound=BaseModel)

JSONL = ("application/jsonl", "application/x-ndjson")
OFFLOAD_BYTES = 1 << 20
_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


@dataclass(frozen=True, slots=True)
class Asked:
    """One inference that a caller asked for, checked as far as the gateway can."""

    card: ModelCard
    request: InferRequest
    lane: Lane
    timeout_ms: int | None


@dataclass(frozen=True, slots=True)
class AskedJob:
    """A job that a caller asked for, all of its items at hand."""

    card: ModelCard
    requests: list[InferRequest]
    body: JobBody


def media_type(headers: Mapping[str, str]) -> str:
    """Return the body's type, JSON if none is named. Raises UnsupportedMedia on forms and encoded bodies."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMedia("must be identity: compressed bodies are not read", field="content-encoding")
    media = headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if media in _FORMS:
        raise UnsupportedMedia(
            f"forms are not read; send {JSON}, {MSGPACK}, or the plain bytes of an image or file",
            field="content-type",
        )
    return media


async def read_predict(body: bytes, media: str, query: Mapping[str, str], catalogue: Catalogue) -> Asked:
    """Read the body of a predict call. Raises InvalidInput, UnsupportedMedia, UnknownModel."""
    if media == JSON:
        return await _from_json(body, catalogue)
    asked = _validate(PredictQuery, dict(query))
    if media == MSGPACK:
        request = await off_loop(len(body), _from_msgpack, body)
        card = await catalogue.card(request.model, request.version)
    else:
        if asked.model is None:
            raise InvalidInput("is missing; name it in the query, as in ?model=<name>", field="model")
        card = await catalogue.card(asked.model, asked.version)
        request = _from_raw(body, media, card, asked.version)
    return Asked(card, request, asked.priority, asked.timeout_ms)


async def read_job(body: bytes, catalogue: Catalogue, *, max_items: int) -> AskedJob:
    """Read the JSON body of a job. Raises InvalidInput naming the first item that is wrong, TooLarge."""
    asked = await off_loop(len(body), read_map, JobBody, body)
    card = await catalogue.card(asked.model, asked.version)
    items = _items_of(asked)
    if len(items) > max_items:
        raise TooLarge(f"holds {len(items)} items, at most {max_items} are allowed", field="items")
    requests = await off_loop(len(body), _item_requests, items, asked, card)
    return AskedJob(card, requests, asked)


def item_request(
    inputs: Any, parameters: Mapping[str, Any], card: ModelCard, version: int | None
) -> InferRequest:
    """Build the request for one JSON input. Raises InvalidInput naming the tensor."""
    tensors = tuple(json_inputs(inputs, card.signature))
    for i, tensor in enumerate(tensors):
        check_tensor(tensor, field=f"inputs[{i}]")
    return InferRequest(model=card.name, inputs=tensors, version=version, parameters=dict(parameters))


def read_map(form: type[B], body: bytes) -> B:
    """Read a JSON body of a given form. Raises InvalidInput and pydantic's ValidationError."""
    return _validate(form, read_json(body))


async def off_loop(size: int, call: Callable[[*Ts], R], *arguments: *Ts) -> R:
    """Call on a thread if what is worked on is large, so that other callers are not held up."""
    if size <= OFFLOAD_BYTES:
        return call(*arguments)
    return await asyncio.to_thread(call, *arguments)


async def _from_json(body: bytes, catalogue: Catalogue) -> Asked:
    asked = await off_loop(len(body), read_map, PredictBody, body)
    card = await catalogue.card(asked.model, asked.version)
    request = await off_loop(len(body), item_request, asked.inputs, asked.parameters, card, asked.version)
    return Asked(card, request, asked.priority, asked.timeout_ms)


def _from_msgpack(body: bytes) -> InferRequest:
    request = decode_request(body, MSGPACK)
    if not isinstance(request, InferRequest):
        raise InvalidInput("must hold the tensors themselves; references are for messages", field="blob")
    return request


def _from_raw(body: bytes, media: str, card: ModelCard, version: int | None) -> InferRequest:
    if card.raw_input is None:
        raise UnsupportedMedia(
            f"{media or 'this type'} is not read, because the model takes no plain bytes; "
            f"send {JSON} or {MSGPACK}",
            field="content-type",
        )
    tensor = Tensor(card.raw_input, BYTES, (1,), pack_bytes([body]))
    return InferRequest(model=card.name, inputs=(tensor,), version=version)


def _items_of(asked: JobBody) -> list[JobItem]:
    if (asked.items is None) == (asked.inputs is None):
        raise InvalidInput("give either 'items' or 'inputs'", field="items")
    if asked.items is None:
        return [JobItem(inputs=asked.inputs, parameters=asked.parameters)]
    if asked.parameters:
        raise InvalidInput("belong into each of 'items'", field="parameters")
    return asked.items


def _item_requests(items: Iterable[JobItem], asked: JobBody, card: ModelCard) -> list[InferRequest]:
    requests = []
    for i, item in enumerate(items):
        try:
            requests.append(item_request(item.inputs, item.parameters, card, asked.version))
        except InvalidInput as error:
            prefix = f"items[{i}]." if asked.items is not None else ""
            raise type(error)(error.message, field=f"{prefix}{error.field}") from error
    return requests


def _validate(form: type[B], raw: Any) -> B:
    if not isinstance(raw, dict):
        raise InvalidInput("must be a map", field="body")
    return form.model_validate(raw)
