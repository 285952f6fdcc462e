"""Tensors and other values as JSON, for people and hand-written publishers.

A tensor in JSON is `{"name", "dtype"?, "shape"?, "data"}` with `data` nested or flat row-major, or with
`"base64"` in place of `data`: raw little-endian bytes, or for dtype `bytes` one element. Elements of dtype
`bytes` are JSON strings, read as UTF-8. Floats that are not finite are written as the strings "NaN",
"Infinity" and "-Infinity".
"""

import base64
import binascii
import math
from typing import Any

import numpy as np
import pydantic_core

from schemas.errors import InvalidInput
from schemas.models import TensorSpec
from schemas.tensors import (
    BYTES,
    DTYPES,
    MAX_NAME_CHARS,
    Array,
    Tensor,
    check_shape,
    element_count,
    from_array,
    pack_bytes,
    to_array,
)

_KEYS = frozenset({"name", "dtype", "shape", "data", "base64"})
_KINDS = {"f": "numbers", "i": "whole numbers", "u": "whole numbers", "b": "booleans"}
_TYPES: dict[str, set[type]] = {"f": {int, float}, "i": {int}, "u": {int}, "b": {bool}}
_NAMED_FLOATS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def read_json(body: bytes) -> Any:
    """Parse JSON. Raises InvalidInput on anything else, NaN and Infinity tokens included."""
    try:
        return pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidInput(f"is not valid JSON: {error}", field="body") from error


def write_json(value: Any) -> bytes:
    """Write JSON; bytes become UTF-8 text or, where they are not text, base64."""
    return pydantic_core.to_json(value, inf_nan_mode="strings")


def tensor_from_json(raw: Any, *, spec: TensorSpec | None, field: str) -> Tensor:
    """Read one tensor. `spec` supplies what the JSON leaves out. Raises InvalidInput."""
    if not isinstance(raw, dict):
        raise InvalidInput("must be a map with name and data", field=field)
    if unknown := raw.keys() - _KEYS:
        raise InvalidInput(
            f"is unknown; allowed are {', '.join(sorted(_KEYS))}", field=f"{field}.{min(unknown)}"
        )
    name = raw.get("name")
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME_CHARS:
        raise InvalidInput(f"must be a string of 1 to {MAX_NAME_CHARS} characters", field=f"{field}.name")
    dtype = raw.get("dtype", spec.dtype if spec else None)
    if dtype not in DTYPES:
        missing = "is missing, and the model does not say it; " if dtype is None else ""
        raise InvalidInput(f"{missing}must be one of {', '.join(DTYPES)}", field=f"{field}.dtype")
    shape = _shape(raw.get("shape"), field=field)
    if "base64" in raw:
        if "data" in raw:
            raise InvalidInput("must not stand beside 'data'", field=f"{field}.base64")
        return _from_base64(name, dtype, shape, raw["base64"], field=field)
    if "data" not in raw:
        raise InvalidInput("is missing", field=f"{field}.data")
    if dtype == BYTES:
        return _from_strings(name, shape, raw["data"], field=field)
    return _from_numbers(name, dtype, shape, raw["data"], field=field)


def tensor_to_json(tensor: Tensor) -> dict[str, Any]:
    """Lay a checked tensor out for `write_json`, its data nested by shape."""
    array = to_array(tensor)
    data = _text_lists(array.tolist()) if tensor.dtype == BYTES else array.tolist()
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape), "data": data}


def _text_lists(value: Any) -> Any:
    if isinstance(value, list):
        return [_text_lists(v) for v in value]
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode()


def _shape(raw: Any, *, field: str) -> tuple[int, ...] | None:
    if raw is None:
        return None
    whole = isinstance(raw, list) and all(
        isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in raw
    )
    if not whole:
        raise InvalidInput("must be a list of whole numbers, none negative", field=f"{field}.shape")
    check_shape(raw, field=f"{field}.shape")
    return tuple(raw)


def _from_base64(name: str, dtype: str, shape: tuple[int, ...] | None, raw: Any, *, field: str) -> Tensor:
    try:
        data = base64.b64decode(raw, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise InvalidInput("is not valid base64", field=f"{field}.base64") from error
    if dtype == BYTES:
        if shape is not None and element_count(shape) != 1:
            raise InvalidInput("base64 holds one element; use data for several", field=f"{field}.shape")
        return Tensor(name, BYTES, (1,) if shape is None else shape, pack_bytes([data]))
    if shape is None:
        raise InvalidInput("is needed beside base64", field=f"{field}.shape")
    return Tensor(name, dtype, shape, data)  # `check_tensor` compares shape and length


def _from_strings(name: str, shape: tuple[int, ...] | None, data: Any, *, field: str) -> Tensor:
    if isinstance(data, str):
        data = [data]
    values, found = _flatten_strings(data, field=field)
    _check_count(shape, len(values), field=field)
    try:
        return Tensor(name, BYTES, found if shape is None else shape, pack_bytes(v.encode() for v in values))
    except UnicodeEncodeError as error:
        raise InvalidInput("must hold valid text", field=f"{field}.data") from error


def _flatten_strings(data: Any, *, field: str) -> tuple[list[str], tuple[int, ...]]:
    array = np.empty(0, dtype=object)
    try:
        array = np.array(data, dtype=object)
    except ValueError as error:
        raise InvalidInput("must not be ragged", field=f"{field}.data") from error
    values = array.ravel().tolist()
    if not all(isinstance(v, str) for v in values):
        raise InvalidInput("must hold strings, for dtype bytes, and not be ragged", field=f"{field}.data")
    return values, array.shape


def _from_numbers(name: str, dtype: str, shape: tuple[int, ...] | None, data: Any, *, field: str) -> Tensor:
    try:
        # As objects: left to itself, numpy pads a list of strings to its longest, takes true for 1, and
        # makes floats of large whole numbers.
        objects = np.array(data, dtype=object)
    except ValueError as error:
        raise InvalidInput("must not be ragged", field=f"{field}.data") from error
    array = _cast(objects, dtype, field=field)
    _check_count(shape, array.size, field=field)
    return from_array(name, array if shape is None else array.reshape(shape))


def _cast(objects: Array, dtype: str, *, field: str) -> Array:
    """Convert to `dtype` what fits it; among floats the strings "NaN", "Infinity" and "-Infinity" do."""
    kind = np.dtype(dtype).kind
    values = objects.ravel().tolist()
    types = set(map(type, values))
    named = 0
    if kind == "f" and str in types:
        named = sum(isinstance(v, str) and v in _NAMED_FLOATS for v in values)
        values = [_NAMED_FLOATS.get(v, v) if isinstance(v, str) else v for v in values]
        types = set(map(type, values))
    if list in types:
        raise InvalidInput("must not be ragged", field=f"{field}.data")
    if not types <= _TYPES[kind]:
        raise InvalidInput(f"must hold {_KINDS[kind]}, for dtype {dtype}", field=f"{field}.data")
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=dtype).reshape(objects.shape)
    except OverflowError as error:
        raise InvalidInput(f"holds a number out of the range of {dtype}", field=f"{field}.data") from error
    if kind == "f" and np.count_nonzero(~np.isfinite(array)) > named:
        raise InvalidInput(f"holds a number out of the range of {dtype}", field=f"{field}.data")
    return array


def _check_count(shape: tuple[int, ...] | None, got: int, *, field: str) -> None:
    if shape is not None and element_count(shape) != got:
        raise InvalidInput(
            f"shape {list(shape)} needs {element_count(shape)} elements, got {got}", field=f"{field}.data"
        )
