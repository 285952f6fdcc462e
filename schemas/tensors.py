"""A tensor between the edges: a name, a dtype, a shape, and raw little-endian row-major bytes.

Tensors are never turned into Python lists between the edges. Elements of dtype `bytes` (text, files)
are each a 4-byte little-endian length and that many bytes, as in the Open Inference Protocol's binary
extension.
"""

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, StrictBytes, StrictInt, StrictStr

from schemas.errors import InvalidInput

Array = npt.NDArray[Any]

MAX_RANK = 16
MAX_NAME_CHARS = 256
MAX_ELEMENTS = 1 << 40  # also of a tensor without elements: numpy can not lay out a shape of [0, 2**62]
BYTES = "bytes"
ITEM_BYTES = {
    "bool": 1,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "float16": 2,
    "float32": 4,
    "float64": 8,
}
DTYPES = (*ITEM_BYTES, BYTES)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One named tensor. `data` holds `prod(shape)` elements; `check_tensor` has seen to that."""

    name: Annotated[StrictStr, Field(min_length=1, max_length=MAX_NAME_CHARS)]
    dtype: StrictStr
    shape: tuple[StrictInt, ...]
    data: StrictBytes

    @property
    def items(self) -> int:
        """How many rows it holds along the batch dimension; 1 for a scalar."""
        return self.shape[0] if self.shape else 1


def element_count(shape: Sequence[int]) -> int:
    """Multiply `shape` out in unbounded integers, so nothing overflows before it is checked."""
    return math.prod(shape)


def check_tensor(tensor: Tensor, *, field: str) -> None:
    """Check that dtype, shape and data agree, before anything of that size is allocated.

    Raises InvalidInput naming `field` and what was expected and got.
    """
    if tensor.dtype not in DTYPES:
        raise InvalidInput(f"must be one of {', '.join(DTYPES)}", field=f"{field}.dtype")
    check_shape(tensor.shape, field=f"{field}.shape")
    if tensor.dtype == BYTES:
        _check_bytes_elements(tensor, field=field)
        return
    expected = element_count(tensor.shape) * ITEM_BYTES[tensor.dtype]
    if expected != len(tensor.data):
        raise InvalidInput(
            f"shape {list(tensor.shape)} of {tensor.dtype} needs {expected} bytes, got {len(tensor.data)}",
            field=f"{field}.data",
        )


def check_shape(shape: Sequence[int], *, field: str) -> None:
    """Check that an array of this shape can be laid out. Raises InvalidInput."""
    if len(shape) > MAX_RANK:
        raise InvalidInput(f"has {len(shape)} dimensions, at most {MAX_RANK} are allowed", field=field)
    if any(n < 0 for n in shape):
        raise InvalidInput("must not hold negative sizes", field=field)
    if element_count([max(n, 1) for n in shape]) > MAX_ELEMENTS:
        raise InvalidInput(f"is too large, at most {MAX_ELEMENTS} elements are allowed", field=field)


def _check_bytes_elements(tensor: Tensor, *, field: str) -> None:
    expected, got, at = element_count(tensor.shape), 0, 0
    data = tensor.data
    while at + 4 <= len(data) and got <= expected:
        at += 4 + int.from_bytes(data[at : at + 4], "little")
        got += 1
    if at != len(data) or got != expected:
        raise InvalidInput(
            f"must hold exactly {expected} elements, each a 4-byte little-endian length and its bytes",
            field=f"{field}.data",
        )


def pack_bytes(values: Iterable[bytes]) -> bytes:
    """Encode elements of dtype `bytes`."""
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def unpack_bytes(data: bytes) -> list[bytes]:
    """Decode elements of dtype `bytes`, which were checked before."""
    values, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        values.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return values


def to_array(tensor: Tensor) -> Array:
    """View a checked tensor as a read-only array, without a copy; `bytes` becomes an object array."""
    if tensor.dtype == BYTES:
        values = np.empty(element_count(tensor.shape), dtype=object)
        values[:] = unpack_bytes(tensor.data)
        return values.reshape(tensor.shape)
    return np.frombuffer(tensor.data, dtype=_little_endian(tensor.dtype)).reshape(tensor.shape)


def from_array(name: str, array: Array) -> Tensor:
    """Copy an array out. Object and string arrays become dtype `bytes` (text as UTF-8).

    Raises TypeError on a dtype that has no name on the wire (complex, datetime).
    """
    if array.dtype.kind in "OUS":
        values = [v.encode() if isinstance(v, str) else bytes(v) for v in array.ravel()]
        return Tensor(name, BYTES, array.shape, pack_bytes(values))
    if array.dtype.name not in ITEM_BYTES:
        raise TypeError(f"no tensor dtype for {array.dtype}")
    little = np.ascontiguousarray(array, dtype=_little_endian(array.dtype.name))
    return Tensor(name, array.dtype.name, array.shape, little.tobytes())


def _little_endian(dtype: str) -> np.dtype[Any]:
    return np.dtype(dtype).newbyteorder("<")
