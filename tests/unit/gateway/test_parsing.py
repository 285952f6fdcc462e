"""Bodies become requests: in every form we read, and with words that help in those we do not."""

import json
import struct
from typing import Any

import msgpack
import numpy as np
import pytest
from pydantic import ValidationError

from gateway.catalogue import Catalogue
from gateway.parsing import Asked, media_type, read_job, read_predict
from schemas.errors import InferenceError, InvalidInput, TooLarge, UnknownModel, UnsupportedMedia
from schemas.headers import JSON, MSGPACK
from schemas.subjects import Lane
from schemas.tensors import to_array, unpack_bytes
from tests.unit.gateway.builders import a_card
from tests.unit.gateway.test_catalogue import Placement


@pytest.fixture
async def catalogue() -> Catalogue:
    catalogue = Catalogue(Placement(a_card("m"), a_card("files", dtype="bytes", raw_input="x")))
    await catalogue.refresh()
    return catalogue


async def predict(catalogue: Catalogue, body: Any, media: str = JSON, **query: str) -> Asked:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await read_predict(raw, media, query, catalogue)


async def test_json_takes_what_it_leaves_out_from_the_card(catalogue: Catalogue) -> None:
    asked = await predict(catalogue, {"model": "m", "inputs": {"x": [[1, 2]]}})
    tensor = asked.request.inputs[0]
    assert (tensor.dtype, tensor.shape) == ("float32", (1, 2))
    assert to_array(tensor).tolist() == [[1.0, 2.0]]
    assert (asked.lane, asked.timeout_ms) == (Lane.LIVE, None)


async def test_json_says_version_deadline_lane_and_parameters(catalogue: Catalogue) -> None:
    body = {"model": "m", "inputs": {"x": [[1]]}, "version": 1, "timeout_ms": 50, "priority": "batch"}
    asked = await predict(catalogue, body | {"parameters": {"top_k": 3}})
    assert (asked.lane, asked.timeout_ms, asked.request.version) == (Lane.BATCH, 50, 1)
    assert asked.request.parameters == {"top_k": 3}


async def test_msgpack_is_taken_as_it_is(catalogue: Catalogue) -> None:
    data = np.array([[1, 2]], dtype="<i8")
    tensor = {"name": "x", "dtype": "int64", "shape": [1, 2], "data": data.tobytes()}
    body = msgpack.packb({"v": 1, "model": "m", "inputs": [tensor]})
    asked = await predict(catalogue, body, MSGPACK, timeout_ms="70", priority="interactive")
    assert asked.request.inputs[0].dtype == "int64"  # whether that fits the model, the worker says
    assert (asked.lane, asked.timeout_ms) == (Lane.INTERACTIVE, 70)


@pytest.mark.parametrize("media", ["image/jpeg", "application/octet-stream", "text/plain", "audio/ogg"])
async def test_a_plain_body_fills_the_raw_input(catalogue: Catalogue, media: str) -> None:
    asked = await predict(catalogue, b"\xff\xd8 raw", media, model="files")
    tensor = asked.request.inputs[0]
    assert (tensor.name, tensor.dtype, tensor.shape) == ("x", "bytes", (1,))
    assert unpack_bytes(tensor.data) == [b"\xff\xd8 raw"]


async def test_a_model_without_raw_input_takes_no_plain_body(catalogue: Catalogue) -> None:
    with pytest.raises(UnsupportedMedia, match=f"{JSON} or {MSGPACK}"):
        await predict(catalogue, b"raw", "image/png", model="m")


async def test_a_plain_body_must_name_its_model(catalogue: Catalogue) -> None:
    with pytest.raises(InvalidInput, match="model=") as refused:
        await predict(catalogue, b"raw", "image/png")
    assert refused.value.field == "model"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b"null",
        b'"x"',
        b'{"model": "m", "inputs": {"x": [[NaN]]}}',
        b'{"model": "m", "inputs": {"x": [[Infinity]]}}',
        b'\xef\xbb\xbf{"model": "m", "inputs": {"x": [[1]]}}',
        '{"model": "m", "inputs": {"x": [[1]]}}'.encode("utf-16"),
        b'{"model": "m", "inputs": {"x": [[1]]}}trailing',
        b"[" * 200_000,
        b'{"model": "m", "inputs": ' + b"[" * 300 + b"1" + b"]" * 300 + b"}",
        b'{"model": "m"}',
        b'{"inputs": {"x": [[1]]}}',
        b'{"model": "m", "inputs": {}}',
        b'{"model": "m", "inputs": []}',
        b'{"model": "m", "inputs": 3}',
        b'{"model": "m", "inputs": {"x": [[1], [1, 2]]}}',
        b'{"model": "m", "inputs": {"x": [["a"]]}}',
        b'{"model": "m", "inputs": {"x": [[1]]}, "unknown": 1}',
        b'{"model": "m", "inputs": [{"name": "x", "data": [[1]], "extra": 1}]}',
        b'{"model": "m", "inputs": [{"name": "x", "dtype": "float33", "data": [[1]]}]}',
        b'{"model": "m", "inputs": [{"name": "x", "shape": [-1], "data": [1]}]}',
        b'{"model": "m", "inputs": [{"name": "x", "shape": [4611686018427387904, 4], "base64": "AAAA"}]}',
        b'{"model": "m", "inputs": [{"name": "x", "shape": [1], "base64": "AAAA!"}]}',
        b'{"model": "m", "inputs": {"x": [[1]]}, "version": "1"}',
        b'{"model": "m", "inputs": {"x": [[1]]}, "version": true}',
        b'{"model": "m", "inputs": {"x": [[1]]}, "timeout_ms": 0}',
        b'{"model": "m", "inputs": {"x": [[1]]}, "timeout_ms": 1e30}',
        b'{"model": "m", "inputs": {"x": [[1]]}, "priority": "soon"}',
        b'{"model": "m", "inputs": {"x": [[1]]}, "parameters": {"a": [1]}}',
        b'{"model": "*", "inputs": {"x": [[1]]}}',
        b'{"model": "../m", "inputs": {"x": [[1]]}}',
        b'{"model": "\\ud800", "inputs": {"x": [[1]]}}',
        b'{"model": 7, "inputs": {"x": [[1]]}}',
    ],
)
async def test_malformed_json_is_the_callers_fault(catalogue: Catalogue, body: bytes) -> None:
    with pytest.raises((InvalidInput, ValidationError)):
        await predict(catalogue, body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x93\x01",
        b"\xdf\xff\xff\xff\xff",
        b"\x91" * 100_000,
        msgpack.packb([1]),
        msgpack.packb({"v": 9, "model": "m", "inputs": []}),
        msgpack.packb({"model": "m", "inputs": []}),
        msgpack.packb(
            {"model": "m", "inputs": [{"name": "x", "dtype": "float32", "shape": [2], "data": b"1"}]}
        ),
        msgpack.packb(
            {"model": "a b", "inputs": [{"name": "x", "dtype": "bool", "shape": [1], "data": b"1"}]}
        ),
        msgpack.packb({"blob": "acme/" + "0" * 32, "sha256": "0" * 64, "size": 1}),
        msgpack.packb(
            {
                "model": "m",
                "inputs": [{"name": "x", "dtype": "bytes", "shape": [1], "data": struct.pack("<I", 9)}],
            }
        ),
    ],
)
async def test_malformed_msgpack_is_the_callers_fault(catalogue: Catalogue, body: bytes) -> None:
    with pytest.raises(InvalidInput):
        await predict(catalogue, body, MSGPACK)


async def test_unknown_parts_of_the_query_are_refused(catalogue: Catalogue) -> None:
    with pytest.raises(ValidationError, match="mdoel"):
        await predict(catalogue, b"raw", "image/png", mdoel="files")


async def test_an_unknown_model_is_not_invalid_but_unknown(catalogue: Catalogue) -> None:
    with pytest.raises(UnknownModel):
        await predict(catalogue, {"model": "nope", "inputs": {"x": [[1]]}})


@pytest.mark.parametrize("media", ["multipart/form-data; boundary=x", "application/x-www-form-urlencoded"])
def test_forms_are_not_read(media: str) -> None:
    with pytest.raises(UnsupportedMedia):
        media_type({"content-type": media})


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd", "gzip, gzip"])
def test_compressed_bodies_are_not_read(encoding: str) -> None:
    with pytest.raises(UnsupportedMedia):
        media_type({"content-encoding": encoding})


def test_the_type_of_a_body_is_read_without_its_parameters() -> None:
    assert media_type({"content-type": "Application/JSON; charset=utf-8"}) == JSON
    assert media_type({}) == JSON
    assert media_type({"content-encoding": "identity", "content-type": "image/png"}) == "image/png"


async def job(catalogue: Catalogue, body: Any) -> list[Any]:
    asked = await read_job(json.dumps(body).encode(), catalogue, max_items=3)
    return [to_array(request.inputs[0]).tolist() for request in asked.requests]


async def test_a_job_has_one_input_or_many_items(catalogue: Catalogue) -> None:
    assert await job(catalogue, {"model": "m", "inputs": {"x": [[1]]}}) == [[[1.0]]]
    items = [{"inputs": {"x": [[n]]}} for n in range(3)]
    assert await job(catalogue, {"model": "m", "items": items}) == [[[0.0]], [[1.0]], [[2.0]]]


async def test_the_first_item_that_is_wrong_is_named(catalogue: Catalogue) -> None:
    items = [{"inputs": {"x": [[1]]}}, {"inputs": {"x": [["a"]]}}]
    with pytest.raises(InvalidInput) as refused:
        await job(catalogue, {"model": "m", "items": items})
    assert refused.value.field == "items[1].inputs[0].data"


async def test_more_items_than_allowed_are_too_large(catalogue: Catalogue) -> None:
    with pytest.raises(TooLarge, match="at most 3"):
        await job(catalogue, {"model": "m", "items": [{"inputs": {"x": [[1]]}}] * 4})


@pytest.mark.parametrize(
    "body",
    [
        {"model": "m"},
        {"model": "m", "items": []},
        {"model": "m", "items": [{"inputs": {"x": [[1]]}}], "inputs": {"x": [[1]]}},
        {"model": "m", "items": [{"inputs": {"x": [[1]]}}], "parameters": {"a": 1}},
        {"model": "m", "inputs": {"x": [[1]]}, "metadata": {"a": 1}},
    ],
)
async def test_a_job_that_says_too_little_or_two_things_is_refused(catalogue: Catalogue, body: Any) -> None:
    with pytest.raises((InferenceError, ValidationError)):
        await job(catalogue, body)
