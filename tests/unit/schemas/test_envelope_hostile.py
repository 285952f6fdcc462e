"""Bodies that are damaged, hostile or merely strange: decoded or refused, and never anything else."""

import json
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.envelope import (
    BlobRef,
    Failure,
    InferRequest,
    Result,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
    error_of,
    failure_of,
)
from schemas.errors import (
    DeadlineExceeded,
    ErrorCode,
    InvalidInput,
    Overloaded,
    TooLarge,
)
from schemas.headers import JSON, MSGPACK
from schemas.tensors import DTYPES, from_array
from tests.unit.schemas.test_envelope import GOLDEN_REQUESTS, a_body, refusal
from tests.unit.schemas.test_tensors import ARRAYS, a_tensor

HOSTILE = {
    "empty": b"",
    "text": b"GET / HTTP/1.1\r\n",
    "a number": b"\x01",
    "truncated": encode_request(GOLDEN_REQUESTS["a tensor"][0])[:-3],
    "more behind the end": encode_request(GOLDEN_REQUESTS["a tensor"][0]) + b"\xc0",
    "arrays a million deep": b"\x91" * 1_000_000,
    "maps a million deep": b"\x81\xa1a" * 300_000,
    "a map that claims 4 billion entries": b"\xdf\xff\xff\xff\xff",
    "an array that claims 4 billion entries": b"\xdd\xff\xff\xff\xff" + b"\xc0" * 900_000,
    "a string that claims 4 GiB": b"\xdb\xff\xff\xff\xffx",
    "an extension type": msgpack.packb(a_body(model=msgpack.ExtType(5, b"x"))),
    "a timestamp": msgpack.packb(a_body(inputs=msgpack.Timestamp(5))),
    "a timestamp out of range": b"\x82\xa5model\xa1m\xa6inputs\xc7\x0c\xff" + b"\xff" * 12,
    "text that is not utf-8": b"\x81\xa5model\xa1\xff",
    "keys that are no text": msgpack.packb({1: 2}),
    "900 kB where a short text belongs": msgpack.packb(a_body(model="m" * 900_000)),
    "the unused byte": b"\xc1",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_msgpack_is_refused(name: str) -> None:
    refusal(HOSTILE[name])


def test_of_two_keys_alike_the_last_counts() -> None:
    twice = b"\x84" + b"\xa5model\xa1a" + msgpack.packb(a_body())[1:]
    request = decode_request(twice, MSGPACK)
    assert isinstance(request, InferRequest)
    assert request.model == "m"


@given(st.binary(max_size=400), st.sampled_from([MSGPACK, JSON]))
def test_any_bytes_at_all_are_decoded_or_refused(body: bytes, content_type: str) -> None:
    only_invalid_input(body, content_type)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=6)
    | st.binary(max_size=12)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=4)),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6) | st.binary(max_size=4), inner)
    ),
    max_leaves=10,
)


KEYS = st.sampled_from(["v", "model", "inputs", "version", "parameters", "blob", "sha256", "size", "kind"])


TENSOR_MAPS = st.fixed_dictionaries(
    {
        "name": st.just("x") | VALUES,
        "dtype": st.sampled_from(DTYPES) | VALUES,
        "shape": st.lists(st.integers(0, 4), max_size=3) | VALUES,
        "data": st.binary(max_size=16) | VALUES,
    }
)


@given(
    st.dictionaries(KEYS, VALUES, max_size=5),
    st.fixed_dictionaries(
        {}, optional={"v": st.just(1), "model": st.just("m"), "inputs": st.lists(TENSOR_MAPS, max_size=3)}
    ),
)
def test_any_map_is_decoded_or_refused(wild: dict[str, Any], tame: dict[str, Any]) -> None:
    only_invalid_input(msgpack.packb(wild | tame), MSGPACK)


@given(st.sampled_from(sorted(GOLDEN_REQUESTS)), st.data())
def test_a_request_damaged_on_its_way_is_decoded_or_refused(name: str, data: st.DataObject) -> None:
    body = bytearray.fromhex(GOLDEN_REQUESTS[name][1])
    for at in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=4)):
        body[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))
    only_invalid_input(bytes(body), MSGPACK)
    only_invalid_input(bytes(body[:cut]), MSGPACK)
    written = bytearray(json.dumps({"model": "m", "inputs": {"x": [[1, "NaN"], [True, 1e5]]}}).encode())
    for at in data.draw(st.lists(st.integers(0, len(written) - 1), min_size=1, max_size=4)):
        written[at] = data.draw(st.integers(32, 126))
    only_invalid_input(bytes(written), JSON)


def only_invalid_input(body: bytes, content_type: str) -> None:
    """Decode `body`; anything but a value or InvalidInput fails the test."""
    try:
        request = decode_request(body, content_type)
    except InvalidInput as refused:
        failure = failure_of(refused, "id")
    else:
        assert isinstance(request, InferRequest | BlobRef)
        return
    for encoding in (MSGPACK, JSON):  # whatever was sent, the refusal of it can be sent back
        encode_reply(failure, encoding)


TENSORS = st.builds(from_array, st.text(min_size=1, max_size=20), ARRAYS)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
)


MODELS = st.from_regex(r"([a-zA-Z0-9][a-zA-Z0-9_-]{0,20}/)?[a-zA-Z0-9][a-zA-Z0-9_-]{0,20}", fullmatch=True)


REQUESTS = st.builds(
    InferRequest,
    model=MODELS,
    inputs=st.lists(TENSORS, min_size=1, max_size=4).map(tuple),
    version=st.none() | st.integers(1, 2**31),
    parameters=st.dictionaries(st.text(max_size=10), SCALARS, max_size=4),
)


RESULTS = st.builds(
    Result,
    id=st.text(max_size=40),
    model=MODELS,
    version=st.integers(1, 2**31),
    outputs=st.lists(TENSORS, max_size=3).map(tuple),
    timing=st.dictionaries(st.text(max_size=10), st.floats(allow_nan=False), max_size=3),
)


FAILURES = st.builds(
    Failure,
    id=st.text(max_size=40),
    code=st.sampled_from(ErrorCode),
    message=st.text(max_size=60),
    retryable=st.booleans(),
    field=st.none() | st.text(max_size=20),
)


@given(REQUESTS)
def test_a_request_comes_back_as_it_was(request: InferRequest) -> None:
    assert decode_request(encode_request(request), MSGPACK) == request


@given(RESULTS | FAILURES)
def test_a_reply_comes_back_as_it_was(reply: Result | Failure) -> None:
    assert decode_reply(encode_reply(reply)) == reply


@given(RESULTS | FAILURES)
def test_every_reply_can_be_written_as_json(reply: Result | Failure) -> None:
    written = json.loads(encode_reply(reply, JSON))
    assert (written["kind"], written["id"]) == (reply.kind, reply.id)


def test_what_is_no_reply_is_refused() -> None:
    for body in (
        b"",
        b"\xc1",
        msgpack.packb([1]),
        msgpack.packb({"kind": "chunk", "id": "x"}),
        msgpack.packb({}),
    ):
        with pytest.raises(InvalidInput):
            decode_reply(body)


def test_an_error_comes_through_a_failure_as_it_was() -> None:
    for error in (TooLarge("is 5 bytes", field="body"), DeadlineExceeded("late"), Overloaded("full")):
        back = error_of(failure_of(error, "id"))
        assert (type(back), back.message, back.field) == (type(error), error.message, error.field)
        assert failure_of(error, "id").retryable == error.retryable


def test_the_text_of_an_unexpected_exception_is_shown_to_nobody() -> None:
    failure = failure_of(ValueError("/srv/models/secret.onnx"), "id")
    assert failure.code == ErrorCode.INTERNAL
    assert "secret" not in failure.message


def test_numpy_scalars_do_not_reach_the_wire() -> None:
    tensor = from_array("x", np.zeros((np.int64(2), 2), dtype="float32"))
    assert decode_request(encode_request(InferRequest("m", (tensor,))), MSGPACK) == InferRequest(
        "m", (tensor,)
    )
    assert a_tensor(shape=(2, 2), data=bytes(16)) == tensor
