"""What a request must be for a model to run it; every refusal names the input and what was expected."""

import numpy as np

from schemas.envelope import InferRequest
from schemas.errors import InvalidInput, TooLarge
from schemas.models import Signature, TensorSpec
from schemas.tensors import Array, Tensor, to_array


def check_inputs(request: InferRequest, signature: Signature, *, max_items: int) -> dict[str, Array]:
    """View the request's tensors as arrays, in the signature's order. They are not copied, and read-only.

    Raises InvalidInput, and TooLarge if there are more than `max_items` along the first dimension.
    """
    specs = {spec.name: spec for spec in signature.inputs}
    arrays: dict[str, Array] = {}
    for i, tensor in enumerate(request.inputs):
        field = f"inputs[{i}]"
        spec = specs.get(tensor.name)
        if spec is None:
            raise InvalidInput(
                f"is not an input of the model, which takes {_list(specs)}", field=f"{field}.name"
            )
        if tensor.name in arrays:
            raise InvalidInput(f"input {tensor.name!r} is given twice", field=f"{field}.name")
        _check_spec(tensor, spec, field=field)
        arrays[tensor.name] = _finite(to_array(tensor), spec, field=field)
    if missing := [name for name in specs if name not in arrays]:
        raise InvalidInput(f"input {missing[0]!r} is missing; the model takes {_list(specs)}", field="inputs")
    _check_items(request, max_items=max_items)
    return {name: arrays[name] for name in specs}


def _check_spec(tensor: Tensor, spec: TensorSpec, *, field: str) -> None:
    fits = len(tensor.shape) == len(spec.shape) and all(
        expected in (-1, got) for expected, got in zip(spec.shape[1:], tensor.shape[1:], strict=True)
    )
    if tensor.dtype != spec.dtype or not fits:
        raise InvalidInput(
            f"input {spec.name!r}: expected {spec.dtype} {list(spec.shape)}, "
            f"got {tensor.dtype} {list(tensor.shape)}",
            field=field,
        )


def _finite(array: Array, spec: TensorSpec, *, field: str) -> Array:
    if array.dtype.kind == "f" and not spec.allow_nan and not np.isfinite(array).all():
        raise InvalidInput(f"input {spec.name!r} holds NaN or infinite values", field=field)
    return array


def _check_items(request: InferRequest, *, max_items: int) -> None:
    first = request.inputs[0]
    for i, tensor in enumerate(request.inputs):
        field = f"inputs[{i}]"
        if tensor.items == 0:
            raise InvalidInput(f"input {tensor.name!r} holds no items", field=field)
        if tensor.items != first.items:
            raise InvalidInput(
                f"input {tensor.name!r} holds {tensor.items} items, but input {first.name!r} {first.items}",
                field=field,
            )
        if tensor.items > max_items:
            raise TooLarge(
                f"input {tensor.name!r} holds {tensor.items} items; the model takes at most {max_items}",
                field=field,
            )


def _list(specs: dict[str, TensorSpec]) -> str:
    return ", ".join(repr(name) for name in specs)
