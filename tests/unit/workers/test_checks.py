"""What requests are refused before any model sees them."""

import numpy as np
import pytest

from schemas.errors import InvalidInput, TooLarge
from schemas.models import Signature, TensorSpec
from schemas.tensors import Array
from tests.models import a_request
from workers.checks import check_inputs


def a_signature(*inputs: TensorSpec) -> Signature:
    return Signature(inputs=inputs, outputs=())


def spec(name: str, dtype: str = "float32", shape: tuple[int, ...] = (-1, 4), **keys: bool) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape, **keys)


def zeros(*shape: int, dtype: str = "float32") -> Array:
    return np.zeros(shape, dtype=dtype)


IMAGE = a_signature(spec("x", shape=(-1, 3, 224, 224)))
PAIR = a_signature(spec("a"), spec("b"))


def test_arrays_come_in_the_signatures_order_whatever_the_requests() -> None:
    arrays = check_inputs(a_request(b=zeros(2, 4), a=zeros(2, 4)), PAIR, max_items=2)
    assert list(arrays) == ["a", "b"]


def test_an_unknown_input_is_refused_with_the_known_ones_named() -> None:
    with pytest.raises(InvalidInput, match=r"not an input of the model, which takes 'a', 'b'") as refused:
        check_inputs(a_request(a=zeros(1, 4), c=zeros(1, 4)), PAIR, max_items=8)
    assert refused.value.field == "inputs[1].name"


def test_a_missing_input_is_named() -> None:
    with pytest.raises(InvalidInput, match="input 'b' is missing; the model takes 'a', 'b'") as refused:
        check_inputs(a_request(a=zeros(1, 4)), PAIR, max_items=8)
    assert refused.value.field == "inputs"


def test_an_input_given_twice_is_refused() -> None:
    request = a_request(a=zeros(1, 4))
    twice = type(request)(model="m", inputs=request.inputs * 2)
    with pytest.raises(InvalidInput, match="'a' is given twice") as refused:
        check_inputs(twice, PAIR, max_items=8)
    assert refused.value.field == "inputs[1].name"


@pytest.mark.parametrize(
    "wrong",
    [
        zeros(1, 3, 10, 10, dtype="float64"),
        zeros(1, 3, 224, 10),
        zeros(3, 224, 224),
        zeros(1, 3, 224, 224, dtype="float16"),
        zeros(),
    ],
)
def test_a_wrong_dtype_or_shape_is_refused_saying_what_was_expected(wrong: Array) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_inputs(a_request(x=wrong), IMAGE, max_items=8)
    got = f"{wrong.dtype} {list(wrong.shape)}"
    assert refused.value.message == f"input 'x': expected float32 [-1, 3, 224, 224], got {got}"
    assert refused.value.field == "inputs[0]"


def test_a_request_without_items_is_refused() -> None:
    with pytest.raises(InvalidInput, match="'a' holds no items"):
        check_inputs(a_request(a=zeros(0, 4), b=zeros(0, 4)), PAIR, max_items=8)


def test_inputs_must_hold_equally_many_items() -> None:
    with pytest.raises(InvalidInput, match="'b' holds 3 items, but input 'a' 2") as refused:
        check_inputs(a_request(a=zeros(2, 4), b=zeros(3, 4)), PAIR, max_items=8)
    assert refused.value.field == "inputs[1]"


def test_more_items_than_a_batch_takes_are_refused_with_the_limit() -> None:
    with pytest.raises(TooLarge, match="holds 9 items; the model takes at most 8"):
        check_inputs(a_request(a=zeros(9, 4), b=zeros(9, 4)), PAIR, max_items=8)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_unless_the_input_allows_them(bad: float) -> None:
    request = a_request(a=zeros(1, 4), b=np.array([[0, bad, 0, 0]], dtype=np.float32))
    with pytest.raises(InvalidInput, match="'b' holds NaN or infinite") as refused:
        check_inputs(request, PAIR, max_items=8)
    assert refused.value.field == "inputs[1]"
    check_inputs(request, a_signature(spec("a"), spec("b", allow_nan=True)), max_items=8)


def test_a_model_that_takes_one_item_at_a_time_refuses_two() -> None:
    one = a_signature(spec("x", shape=(1, 4)))
    check_inputs(a_request(x=zeros(1, 4)), one, max_items=1)
    with pytest.raises(TooLarge, match="at most 1"):
        check_inputs(a_request(x=zeros(2, 4)), one, max_items=1)
