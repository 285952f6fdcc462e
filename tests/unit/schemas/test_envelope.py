"""Requests and replies as bytes: their pinned form, how it may grow, and what strangers may send."""

import json
from typing import Any

import msgpack
import pytest

from schemas.envelope import (
    MAX_TENSORS,
    BlobRef,
    Failure,
    InferRequest,
    Result,
    decode_reply,
    decode_request,
    encode_blob_ref,
    encode_reply,
    encode_request,
)
from schemas.errors import (
    MAX_FIELD_CHARS,
    ErrorCode,
    InvalidInput,
)
from schemas.headers import JSON, MSGPACK
from schemas.models import Signature, TensorSpec
from schemas.tensors import Tensor, pack_bytes

X = Tensor("x", "float32", (1, 2), bytes.fromhex("0000803f00000040"))


TEXT = Tensor("t", "bytes", (1,), pack_bytes([b"hi"]))


# The wire form, byte for byte. A change here breaks publishers and workers of other versions.
GOLDEN_REQUESTS = {
    "a tensor": (
        InferRequest("org/m.v2", (X,)),
        "83a17601a56d6f64656ca86f72672f6d2e7632a6696e707574739184a46e616d65a178a56474797065a7666c6f617433"
        "32a57368617065920102a464617461c4080000803f00000040",
    ),
    "text, a version and parameters": (
        InferRequest("m", (TEXT,), version=3, parameters={"k": 1, "b": True, "n": None, "s": "t", "f": 0.5}),
        "85a17601a56d6f64656ca16da6696e707574739184a46e616d65a174a56474797065a56279746573a573686170659101"
        "a464617461c406020000006869a776657273696f6e03aa706172616d657465727385a16b01a162c3a16ec0a173a174a1"
        "66cb3fe0000000000000",
    ),
}


GOLDEN_REPLIES: dict[str, tuple[Result | Failure, str]] = {
    "a result": (
        Result("id-1", "m", 3, (X,), {"run_ms": 1.5}),
        "87a17601a46b696e64a6726573756c74a26964a469642d31a56d6f64656ca16da776657273696f6e03a76f7574707574"
        "739184a46e616d65a178a56474797065a7666c6f61743332a57368617065920102a464617461c4080000803f00000040"
        "a674696d696e6781a672756e5f6d73cb3ff8000000000000",
    ),
    "a failure of the input": (
        Failure("id-1", ErrorCode.INVALID_INPUT, "why", field="inputs[0]"),
        "87a17601a46b696e64a76661696c757265a26964a469642d31a4636f6465ad696e76616c69645f696e707574a76d6573"
        "73616765a3776879a9726574727961626c65c2a56669656c64a9696e707574735b305d",
    ),
    "a failure of ours": (
        Failure("id-1", ErrorCode.UNAVAILABLE, "why", retryable=True),
        "86a17601a46b696e64a76661696c757265a26964a469642d31a4636f6465ab756e617661696c61626c65a76d65737361"
        "6765a3776879a9726574727961626c65c3",
    ),
}


REF = BlobRef("acme/" + "0" * 32, "a" * 64, 1_048_577)


GOLDEN_REF = (
    "84a17601a4626c6f62d92561636d652f3030303030303030303030303030303030303030303030303030303030303030"
    "a6736861323536d940616161616161616161616161616161616161616161616161616161616161616161616161616161"
    "61616161616161616161616161616161616161616161616161a473697a65ce00100001"
)


def a_body(**keys: Any) -> dict[str, Any]:
    """Lay out a good request as the map that msgpack holds, but for `keys`."""
    tensor = {"name": X.name, "dtype": X.dtype, "shape": list(X.shape), "data": X.data}
    return {"v": 1, "model": "m", "inputs": [tensor]} | keys


def decoded(body: Any) -> InferRequest | BlobRef:
    return decode_request(msgpack.packb(body), MSGPACK)


def refusal(body: Any, content_type: str = MSGPACK) -> InvalidInput:
    raw = body if isinstance(body, bytes) else msgpack.packb(body)
    with pytest.raises(InvalidInput) as refused:
        decode_request(raw, content_type)
    return refused.value


@pytest.mark.parametrize("name", GOLDEN_REQUESTS)
def test_the_bytes_of_a_request_stay_the_same(name: str) -> None:
    request, golden = GOLDEN_REQUESTS[name]
    assert encode_request(request).hex() == golden
    assert decode_request(bytes.fromhex(golden), MSGPACK) == request


@pytest.mark.parametrize("name", GOLDEN_REPLIES)
def test_the_bytes_of_a_reply_stay_the_same(name: str) -> None:
    reply, golden = GOLDEN_REPLIES[name]
    assert encode_reply(reply).hex() == golden
    assert decode_reply(bytes.fromhex(golden)) == reply


def test_the_bytes_of_a_blob_reference_stay_the_same() -> None:
    assert encode_blob_ref(REF).hex() == GOLDEN_REF
    golden = bytes.fromhex(GOLDEN_REF)
    assert decode_request(golden, MSGPACK) == decode_reply(golden) == REF


def test_the_json_of_a_reply_stays_the_same() -> None:
    result = encode_reply(Result("id-1", "m", 3, (X, TEXT), {"run_ms": 1.5}), JSON)
    assert result == (
        b'{"v":1,"kind":"result","id":"id-1","model":"m","version":3,"outputs":['
        b'{"name":"x","dtype":"float32","shape":[1,2],"data":[[1.0,2.0]]},'
        b'{"name":"t","dtype":"bytes","shape":[1],"data":["hi"]}],"timing":{"run_ms":1.5}}'
    )
    failure = encode_reply(Failure("id-1", ErrorCode.INVALID_INPUT, "why", field="inputs[0]"), JSON)
    assert failure == (
        b'{"v":1,"kind":"failure","id":"id-1","code":"invalid_input","message":"why","retryable":false,'
        b'"field":"inputs[0]"}'
    )


def test_keys_of_a_later_version_are_ignored() -> None:
    plain = decoded(a_body())
    later = a_body(shard=[1, 2], inputs=[a_body()["inputs"][0] | {"layout": "NCHW"}])
    assert decoded(later) == plain
    reply = msgpack.unpackb(encode_reply(GOLDEN_REPLIES["a result"][0]))
    assert decode_reply(msgpack.packb(reply | {"cost": 5})) == GOLDEN_REPLIES["a result"][0]
    reference = msgpack.unpackb(encode_blob_ref(REF))
    assert decoded(reference | {"region": "eu"}) == REF


def test_a_body_without_v_is_of_version_1() -> None:
    body = a_body()
    del body["v"]
    assert decoded(body) == decoded(a_body())


@pytest.mark.parametrize("v", [0, 2, -1, "1", None, [1], 1.5, True, 1.0, 2**64 - 1])
def test_an_unknown_v_is_refused(v: Any) -> None:
    assert refusal(a_body(v=v)).field == "v"
    with pytest.raises(InvalidInput):
        decode_reply(
            msgpack.packb({"v": v, "kind": "failure", "id": "i", "code": "internal", "message": "m"})
        )


def test_json_and_msgpack_say_the_same() -> None:
    written = {"model": "m", "inputs": [{"name": "x", "dtype": "float32", "data": [[1.0, 2.0]]}]}
    assert decode_request(json.dumps(written).encode(), JSON) == decoded(a_body())


def test_json_inputs_may_be_a_map_and_the_signature_knows_the_dtypes() -> None:
    signature = Signature(inputs=(TensorSpec(name="x", dtype="float32", shape=(-1, 2)),), outputs=())
    body = json.dumps({"model": "m", "inputs": {"x": [[1, 2]]}}).encode()
    assert decode_request(body, JSON, signature=signature) == decoded(a_body())
    assert refusal(body, JSON).field == "inputs[0].dtype"


@pytest.mark.parametrize("inputs", [None, [], {}, "x", 5, {"x": [1]}, [[]], ["x"]])
def test_inputs_must_be_tensors(inputs: Any) -> None:
    assert (refusal(a_body(inputs=inputs)).field or "").startswith("inputs")
    assert (refusal(json.dumps({"model": "m", "inputs": inputs}).encode(), JSON).field or "").startswith(
        "inputs"
    )


def test_too_many_tensors_are_refused() -> None:
    assert refusal(a_body(inputs=a_body()["inputs"] * (MAX_TENSORS + 1))).field == "inputs"
    tensors = [{"name": "x", "dtype": "int8", "data": [1]}] * (MAX_TENSORS + 1)
    assert refusal(json.dumps({"model": "m", "inputs": tensors}).encode(), JSON).field == "inputs"


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"model": b"m"}, "model"),
        ({"model": "../../etc/passwd"}, "model"),
        ({"model": "a b"}, "model"),
        ({"model": "$JS.API.STREAM.DELETE.RESULTS"}, "model"),
        ({"version": 0}, "version"),
        ({"version": True}, "version"),
        ({"version": "1"}, "version"),
        ({"parameters": [1]}, "parameters"),
        ({"parameters": {"a": [1]}}, "parameters.a"),
        ({"parameters": {"a": float("nan")}}, "parameters.a"),
        ({"parameters": {"a": float("inf")}}, "parameters.a"),
    ],
)
def test_every_refusal_names_the_field(changed: dict[str, Any], field: str) -> None:
    assert (refusal(a_body(**changed)).field or "").startswith(field)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"name": ""}, "inputs[0].name"),
        ({"name": "x" * 257}, "inputs[0].name"),
        ({"name": 5}, "inputs[0].name"),
        ({"dtype": "FP32"}, "inputs[0].dtype"),
        ({"shape": "12"}, "inputs[0].shape"),
        ({"shape": [1.0, 2]}, "inputs[0].shape[0]"),
        ({"shape": [True, 2]}, "inputs[0].shape[0]"),
        ({"shape": [-1, -2]}, "inputs[0].shape"),
        ({"shape": [1] * 17}, "inputs[0].shape"),
        ({"shape": [2**62, 4]}, "inputs[0].shape"),
        ({"shape": [0, 2**63]}, "inputs[0].shape"),
        ({"shape": [1, 3]}, "inputs[0].data"),
        ({"data": "text where bin belongs"}, "inputs[0].data"),
        ({"data": [1.0, 2.0]}, "inputs[0].data"),
        ({"data": b""}, "inputs[0].data"),
    ],
)
def test_every_refusal_of_a_tensor_names_the_part(changed: dict[str, Any], field: str) -> None:
    assert refusal(a_body(inputs=[a_body()["inputs"][0] | changed])).field == field


@pytest.mark.parametrize(
    "changed",
    [
        {"blob": "acme/../other/" + "0" * 32},
        {"blob": "Acme/" + "0" * 32},
        {"blob": "/etc/passwd"},
        {"blob": "acme/" + "0" * 32 + "\n"},
        {"blob": b"acme/" + b"0" * 32},
        {"sha256": "a" * 63},
        {"sha256": "A" * 64},
        {"size": -1},
        {"size": 1.5},
        {"size": True},
    ],
)
def test_a_blob_reference_can_name_nothing_but_a_blob(changed: dict[str, Any]) -> None:
    assert refusal(msgpack.unpackb(encode_blob_ref(REF)) | changed).field == next(iter(changed))


def test_a_refusal_does_not_repeat_what_was_sent() -> None:
    secret = "s3cret" * 50
    refused = refusal(a_body(model={secret: secret}, parameters={"a": [secret]}))
    assert secret not in refused.message
    huge_key = refusal(a_body(parameters={"k" * 300_000: [1]}))
    assert len(huge_key.field or "") <= MAX_FIELD_CHARS
