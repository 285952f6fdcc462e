"""Tensors as raw bytes: what is checked before anything is allocated, and arrays there and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from schemas.errors import InvalidInput
from schemas.tensors import (
    BYTES,
    DTYPES,
    ITEM_BYTES,
    MAX_RANK,
    Array,
    Tensor,
    check_tensor,
    from_array,
    pack_bytes,
    to_array,
    unpack_bytes,
)

NUMERIC = st.sampled_from(sorted(ITEM_BYTES))
ARRAYS = NUMERIC.flatmap(
    lambda dtype: hnp.arrays(
        np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    )
)


def a_tensor(
    *, dtype: str = "float32", shape: tuple[int, ...] = (2, 2), data: bytes = bytes(16), name: str = "x"
) -> Tensor:
    return Tensor(name, dtype, shape, data)


def refusal(tensor: Tensor) -> InvalidInput:
    with pytest.raises(InvalidInput) as refused:
        check_tensor(tensor, field="inputs[0]")
    return refused.value


@given(ARRAYS)
def test_an_array_comes_back_as_it_was(array: Array) -> None:
    tensor = from_array("x", array)
    check_tensor(tensor, field="x")
    back = to_array(tensor)
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


@given(st.lists(st.binary(max_size=300), max_size=12))
def test_elements_of_dtype_bytes_come_back_as_they_were(values: list[bytes]) -> None:
    tensor = a_tensor(dtype=BYTES, shape=(len(values),), data=pack_bytes(values))
    check_tensor(tensor, field="x")
    assert unpack_bytes(tensor.data) == values
    assert to_array(tensor).tolist() == values


def test_text_travels_as_utf8_bytes() -> None:
    array = np.array([["é", "日本"]], dtype=object)
    assert to_array(from_array("t", array)).tolist() == [["é".encode(), "日本".encode()]]
    assert from_array("t", np.array(["é", "日本"])) == from_array("t", np.array(["é", "日本"], dtype=object))


def test_big_endian_and_strided_arrays_travel_little_endian_and_row_major() -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    tensor = from_array("x", array)
    assert tensor.data == b"".join(int(n).to_bytes(4, "little") for n in array.ravel())
    assert to_array(tensor).tolist() == array.tolist()


def test_a_view_of_a_tensor_can_not_be_written_to() -> None:
    assert not to_array(a_tensor()).flags.writeable


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]"])
def test_a_dtype_without_a_name_on_the_wire_is_a_type_error(dtype: str) -> None:
    with pytest.raises(TypeError, match="no tensor dtype"):
        from_array("x", np.zeros(2, dtype=dtype))


@pytest.mark.parametrize("dtype", ["float", "FP32", "complex64", "", "object"])
def test_an_unknown_dtype_is_refused_with_the_known_ones_named(dtype: str) -> None:
    refused = refusal(a_tensor(dtype=dtype))
    assert refused.field == "inputs[0].dtype"
    assert all(known in refused.message for known in DTYPES)


@pytest.mark.parametrize(("shape", "size"), [((2, 2), 15), ((2, 2), 17), ((2, 2), 0), ((3,), 16), ((), 16)])
def test_data_that_does_not_fill_the_shape_is_refused_with_what_was_expected_and_got(
    shape: tuple[int, ...], size: int
) -> None:
    refused = refusal(a_tensor(shape=shape, data=bytes(size)))
    assert refused.field == "inputs[0].data"
    assert refused.message.endswith(f"needs {4 * int(np.prod(shape))} bytes, got {size}")


@pytest.mark.parametrize("shape", [(-1,), (2, -2), (-1, -16)])
def test_a_negative_size_is_refused(shape: tuple[int, ...]) -> None:
    assert refusal(a_tensor(shape=shape)).field == "inputs[0].shape"


def test_too_many_dimensions_are_refused() -> None:
    check_tensor(a_tensor(shape=(1,) * MAX_RANK, data=bytes(4)), field="x")
    refused = refusal(a_tensor(shape=(1,) * (MAX_RANK + 1), data=bytes(4)))
    assert "17 dimensions, at most 16" in refused.message
    assert refusal(a_tensor(shape=(1,) * 1_000_000, data=bytes(4))).field == "inputs[0].shape"


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", BYTES])
@pytest.mark.parametrize("shape", [(2**62, 4), (2**32, 2**32), (2**64 - 1,) * 16, (0, 2**62), (0, 2**64)])
def test_a_shape_too_large_to_lay_out_is_refused_unallocated(shape: tuple[int, ...], dtype: str) -> None:
    assert refusal(a_tensor(dtype=dtype, shape=shape, data=b"")).field == "inputs[0].shape"


@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 2**64), max_size=4),
    data=st.binary(max_size=64),
)
def test_what_passes_the_check_can_be_viewed_as_an_array(dtype: str, shape: list[int], data: bytes) -> None:
    tensor = a_tensor(dtype=dtype, shape=tuple(shape), data=data)
    try:
        check_tensor(tensor, field="x")
    except InvalidInput:
        return
    assert to_array(tensor).shape == tuple(shape)


@pytest.mark.parametrize(
    "data",
    [
        b"\x05\0\0\0abc",  # says 5, holds 3
        b"\x02\0\0\0abc",  # says 2, holds 3
        b"\xff\xff\xff\xffabc",
        b"\x01\0\0",  # not even a length
        pack_bytes([b"a", b"b"]),  # one too many
        b"",
    ],
)
def test_bytes_elements_must_fill_the_data_exactly(data: bytes) -> None:
    refused = refusal(a_tensor(dtype=BYTES, shape=(1,), data=data))
    assert refused.field == "inputs[0].data"
    assert "exactly 1 elements" in refused.message


def test_a_million_claimed_elements_cost_no_more_than_the_data_that_is_there() -> None:
    assert refusal(a_tensor(dtype=BYTES, shape=(2**39,), data=bytes(4))).field == "inputs[0].data"


def test_a_scalar_counts_as_one_item() -> None:
    assert a_tensor(shape=(), data=bytes(4)).items == 1
    assert a_tensor(shape=(0, 4), data=b"").items == 0
    assert a_tensor(shape=(3, 4), data=bytes(48)).items == 3
