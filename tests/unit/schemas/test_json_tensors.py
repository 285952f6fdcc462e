"""Tensors written by hand, as JSON: what is read, what is refused and in which words, and what comes back."""

import base64
import json
import math
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import MAX_FIELD_CHARS, InvalidInput
from schemas.json_tensors import read_json, tensor_from_json, tensor_to_json, write_json
from schemas.models import TensorSpec
from schemas.tensors import BYTES, MAX_NAME_CHARS, Tensor, check_tensor, from_array, to_array
from tests.unit.schemas.test_tensors import ARRAYS, a_tensor


def raw(data: Any = None, *, dtype: str | None = "float32", **keys: Any) -> dict[str, Any]:
    """Write a tensor as a caller would; `data=None` leaves it out."""
    given_keys = {"name": "x", "dtype": dtype, "data": data} | keys
    return {key: value for key, value in given_keys.items() if value is not None}


def read(written: Any, spec: TensorSpec | None = None) -> Tensor:
    """Read what came through JSON, as a body does, and check it."""
    tensor = tensor_from_json(read_json(json.dumps(written).encode()), spec=spec, field="inputs[0]")
    check_tensor(tensor, field="inputs[0]")
    return tensor


def values(written: Any) -> Any:
    return to_array(read(written)).tolist()


def refusal(written: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as refused:
        read(written)
    return refused.value


def test_nested_and_flat_data_are_the_same_tensor() -> None:
    nested = read(raw([[1, 2, 3], [4, 5, 6]]))
    assert nested.shape == (2, 3)
    assert read(raw([1, 2, 3, 4, 5, 6], shape=[2, 3])) == nested
    assert read(raw([[1, 2], [3, 4], [5, 6]], shape=[2, 3])) == nested


def test_base64_is_the_raw_bytes() -> None:
    data = struct.pack("<4f", 1, 2, 3, 4)
    written = raw(base64=base64.b64encode(data).decode(), shape=[2, 2])
    assert read(written) == a_tensor(shape=(2, 2), data=data)


def test_a_number_alone_is_a_scalar() -> None:
    assert read(raw(3)).shape == ()


def test_empty_lists_keep_their_shape() -> None:
    assert read(raw([[], []])).shape == (2, 0)
    assert read(raw([], shape=[0, 7])).shape == (0, 7)


@pytest.mark.parametrize(
    ("dtype", "data"),
    [
        ("uint64", [2**64 - 1, 0]),
        ("int64", [2**63 - 1, -(2**63)]),
        ("int8", [127, -128]),
        ("bool", [[True], [False]]),
        ("float64", [1e308, -0.5]),
        ("float32", [1, 2.5]),
    ],
)
def test_the_whole_range_of_a_dtype_is_read(dtype: str, data: Any) -> None:
    assert values(raw(data, dtype=dtype)) == data


@pytest.mark.parametrize(
    ("dtype", "data"),
    [
        ("int8", [128]),
        ("int8", [-129]),
        ("uint8", [-1]),
        ("uint8", [256]),
        ("int64", [2**63]),
        ("uint64", [2**64]),
        ("uint64", [2**63, -1]),
        ("int64", [10**400]),
        ("float64", [10**400]),
        ("float64", [10**400, "NaN"]),
        ("float32", [1e39]),
        ("float16", [70000.0]),
        ("float32", ["Infinity", 1e39]),
    ],
)
def test_a_number_out_of_range_is_refused_and_never_wrapped(dtype: str, data: Any) -> None:
    refused = refusal(raw(data, dtype=dtype))
    assert refused.message == f"holds a number out of the range of {dtype}"
    assert refused.field == "inputs[0].data"


def test_a_number_too_large_for_any_float_is_refused() -> None:
    body = b'{"name": "x", "dtype": "float64", "data": [1e400]}'
    with pytest.raises(InvalidInput, match="out of the range of float64"):
        tensor_from_json(read_json(body), spec=None, field="inputs[0]")


@pytest.mark.parametrize(
    ("dtype", "data"),
    [
        ("int32", [True]),
        ("int32", [True, 2]),
        ("float32", [True, 2.5]),
        ("float32", [1.0, False]),
        ("int32", [1.0]),
        ("int32", ["1"]),
        ("float32", ["1.5"]),
        ("float32", ["nan"]),
        ("float32", [None, 1.0]),
        ("float32", [{"a": 1}]),
        ("float32", {"a": 1}),
        ("float32", "text"),
        ("int32", ["NaN"]),
        ("bool", [1, 0]),
        ("bool", ["true"]),
        ("bytes", [1]),
        ("bytes", [None]),
        ("bytes", {"a": "b"}),
    ],
)
def test_no_value_is_taken_for_another_type(dtype: str, data: Any) -> None:
    refused = refusal(raw(data, dtype=dtype))
    assert refused.field == "inputs[0].data"
    assert refused.message.startswith("must hold")
    assert dtype in refused.message


@pytest.mark.parametrize(
    "data",
    [
        [[1, 2], [3]],
        [[1, 2], 3],
        [1, [2]],
        [[], [1]],
        [[[1], [2]], [[3], [4, 5]]],
        [["NaN"], [1, 2]],
    ],
)
def test_ragged_data_is_refused(data: Any) -> None:
    refused = refusal(raw(data))
    assert (refused.message, refused.field) == ("must not be ragged", "inputs[0].data")


def test_ragged_text_is_refused() -> None:
    assert "not be ragged" in refusal(raw([["a"], ["b", "c"]], dtype=BYTES)).message


def test_named_floats_are_read_and_written() -> None:
    tensor = read(raw([[1, "NaN"], ["Infinity", "-Infinity"]]))
    first, nan, infinity, minus = to_array(tensor).ravel().tolist()
    assert (first, infinity, minus) == (1, math.inf, -math.inf)
    assert math.isnan(nan)
    written = json.loads(write_json(tensor_to_json(tensor)))
    assert written["data"] == [[1.0, "NaN"], ["Infinity", "-Infinity"]]


@pytest.mark.parametrize("body", [b"[NaN]", b"[Infinity]", b"[-Infinity]"])
def test_the_tokens_of_floats_that_are_not_finite_are_not_json(body: bytes) -> None:
    with pytest.raises(InvalidInput, match="is not valid JSON"):
        read_json(body)


def test_text_is_read_as_utf8() -> None:
    assert values(raw(["é", ""], dtype=BYTES)) == ["é".encode(), b""]
    assert values(raw("alone", dtype=BYTES)) == [b"alone"]


def test_base64_holds_one_element_of_dtype_bytes() -> None:
    assert values(raw(dtype=BYTES, base64="AAEC")) == [b"\0\1\2"]
    assert read(raw(dtype=BYTES, base64="AAEC", shape=[])).shape == ()
    assert read(raw(dtype=BYTES, base64="AAEC", shape=[1, 1])).shape == (1, 1)
    assert refusal(raw(dtype=BYTES, base64="AAEC", shape=[2])).field == "inputs[0].shape"


def test_bytes_that_are_no_text_are_written_as_base64() -> None:
    tensor = from_array("x", np.array([b"\xff\xfe", b"text"], dtype=object))
    assert tensor_to_json(tensor)["data"] == [base64.b64encode(b"\xff\xfe").decode(), "text"]


@pytest.mark.parametrize("wrong", ["not base64!", "AAE", "é", 5, [1]])
def test_what_is_not_base64_is_refused(wrong: Any) -> None:
    refused = refusal(raw(base64=wrong, shape=[1]))
    assert (refused.message, refused.field) == ("is not valid base64", "inputs[0].base64")


def test_base64_needs_a_shape_and_stands_alone() -> None:
    assert refusal(raw(base64="AAAAAA==")).field == "inputs[0].shape"
    assert refusal(raw([1], base64="AAAAAA==")).field == "inputs[0].base64"


def test_neither_data_nor_base64_is_refused() -> None:
    assert (refusal(raw()).message, refusal(raw()).field) == ("is missing", "inputs[0].data")


def test_an_unknown_key_is_refused_so_a_typing_error_is_no_silent_default() -> None:
    refused = refusal(raw([1], shpae=[1]))
    assert refused.field == "inputs[0].shpae"
    assert "allowed are base64, data, dtype, name, shape" in refused.message


def test_a_huge_unknown_key_does_not_come_back_whole() -> None:
    field = refusal({**raw([1]), "k" * 100_000: 1}).field
    assert len(field or "") == MAX_FIELD_CHARS


@pytest.mark.parametrize("name", ["", "x" * (MAX_NAME_CHARS + 1), 5, None, ["x"]])
def test_a_name_must_be_a_string_of_sane_length(name: Any) -> None:
    assert refusal({"name": name, "dtype": "int8", "data": [1]}).field == "inputs[0].name"


@pytest.mark.parametrize("dtype", ["FP32", "float", ["float32"], {"a": 1}, 5, True])
def test_an_unknown_dtype_is_refused(dtype: Any) -> None:
    refused = refusal(raw([1], dtype=dtype))
    assert refused.field == "inputs[0].dtype"
    assert refused.message.startswith("must be one of bool, uint8")


def test_the_model_supplies_the_dtype_that_is_left_out() -> None:
    spec = TensorSpec(name="x", dtype="int16", shape=(-1,))
    assert read(raw([1, 2], dtype=None), spec).dtype == "int16"
    assert read(raw([1, 2], dtype="int8"), spec).dtype == "int8"
    refused = refusal(raw([1], dtype=None))
    assert refused.message.startswith("is missing, and the model does not say it; must be one of bool")


@pytest.mark.parametrize("shape", [[-1], [True], [1.0], ["1"], "1", {"a": 1}, 5, [None], [[1]]])
def test_a_shape_must_be_whole_numbers(shape: Any) -> None:
    assert refusal(raw([1], shape=shape)).field == "inputs[0].shape"


@pytest.mark.parametrize("shape", [[2**62, 4], [0, 2**62], [0, 2**70], [10**400], [1] * 17, [1] * 100_000])
@pytest.mark.parametrize("body", [{"data": []}, {"base64": ""}])
def test_a_hostile_shape_is_refused_before_anything_is_allocated(shape: list[int], body: Any) -> None:
    tracemalloc.start()
    try:
        refused = refusal({"name": "x", "dtype": "float32", "shape": shape, **body})
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused.field in ("inputs[0].shape", "inputs[0].data")
    assert peak_bytes < 16 << 20


def test_a_shape_that_the_data_does_not_fill_is_refused_with_both_counts() -> None:
    refused = refusal(raw([1, 2, 3], shape=[2, 2]))
    assert refused.message == "shape [2, 2] needs 4 elements, got 3"
    assert refused.field == "inputs[0].data"


def test_one_long_string_among_many_short_ones_does_not_multiply_in_memory() -> None:
    data = ["x" * 20_000] + ["a"] * 20_000  # as a numpy text array: 1.6 GB
    tracemalloc.start()
    try:
        assert refusal(raw(data)).message.startswith("must hold numbers")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 32 << 20


@pytest.mark.parametrize("depth", [17, 65, 100, 150])
@pytest.mark.parametrize("dtype", ["float32", BYTES])
def test_data_nested_too_deep_is_refused(depth: int, dtype: str) -> None:
    element = '"a"' if dtype == BYTES else "1"
    written = json.loads("[" * depth + element + "]" * depth)
    assert refusal(raw(written, dtype=dtype)).field in ("inputs[0].data", "inputs[0].shape")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 250_000,
        b"\xef\xbb\xbf{}",
        '{"a": 1}'.encode("utf-16"),
        b'"\xff"',
        b'"\\ud800"',
        b"{'a': 1}",
        b"[1,]",
        b"1" * 5000,
        b"{} {}",
    ],
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput, match="is not valid JSON") as refused:
        read_json(body)
    assert refused.value.field == "body"
    assert len(refused.value.message) < 200


@given(ARRAYS)
def test_a_tensor_comes_back_through_json_as_it_was(array: Any) -> None:
    tensor = from_array("x", array)
    written = json.loads(write_json(tensor_to_json(tensor)))
    if 0 in tensor.shape:  # nested lists can not say what is behind a size of 0
        written["data"] = []
    back = to_array(read(written))
    np.testing.assert_array_equal(back, array)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(
    written=st.fixed_dictionaries(
        {},
        optional={
            "name": st.just("x") | JSON_VALUES,
            "dtype": st.sampled_from(["float32", "int8", "uint64", "bool", "float16", BYTES]) | JSON_VALUES,
            "shape": st.lists(st.integers(0, 3), max_size=3) | JSON_VALUES,
            "data": JSON_VALUES,
            "base64": st.text("AQgw=", max_size=12) | JSON_VALUES,
        },
    )
    | JSON_VALUES
)
def test_anything_is_read_or_refused_and_never_breaks(written: Any) -> None:
    field = None
    try:
        tensor = tensor_from_json(written, spec=None, field="inputs[0]")
        check_tensor(tensor, field="inputs[0]")
    except InvalidInput as refused:
        field = refused.field or "none"
    if field is None:
        json.loads(write_json(tensor_to_json(tensor)))
    else:
        assert field.startswith("inputs[0]")
