"""Small real models for tests: their ONNX files, made once a run, and repositories that hold them.

`div` gives NaN and infinities, `loop` runs as long as its input says, `expand` allocates as much as its
input says, and `identity` answers its input.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

from schemas.envelope import InferRequest
from schemas.models import ModelConfig
from schemas.tensors import Array, from_array
from scripts.models.identity import identity_model
from scripts.models.publish import publishing, write_config
from workers.models import LoadedModel, load_model
from workers.repository import FoundModel, find_model

Dims = Sequence[int | str]


def install_test_models(repository: Path) -> Path:
    """Write `identity`, `div`, `loop` and `expand` into `repository`, and return it."""
    add_model(repository, "identity", identity_model())
    add_model(repository, "div", div_model())
    add_model(repository, "loop", loop_model())
    add_model(repository, "expand", expand_model())
    return repository


def add_model(repository: Path, name: str, model: bytes, *, version: int = 1, **config: Any) -> FoundModel:
    """Write one ONNX model and its model.yaml."""
    with publishing(repository, name, version) as folder:
        (folder / "model.onnx").write_bytes(model)
        write_config(folder, {"format": "onnx", **config})
    return find_model(repository, name, version)


def load(found: FoundModel, *, max_batch_size: int = 8, allow_python: bool = False) -> LoadedModel:
    """Load a model on the CPU."""
    return load_model(
        found, device="cpu", max_batch_size=max_batch_size, batch_timeout_ms=5, allow_python=allow_python
    )


def a_request(*, version: int | None = None, **inputs: Array | Sequence[Any]) -> InferRequest:
    """Build a request from arrays, or from lists of bytes."""
    tensors = tuple(from_array(name, _as_array(values)) for name, values in inputs.items())
    return InferRequest(model="a-model", inputs=tensors, version=version)


def a_config(**keys: Any) -> ModelConfig:
    """Build a model.yaml; ONNX unless `keys` say otherwise."""
    return ModelConfig.model_validate({"format": "onnx", **keys})


@cache
def affine_model() -> bytes:
    """`y = 2x + 1` for float32 `[-1, 4]`."""
    nodes = [_constant("two", [2.0]), _constant("one", [1.0])]
    nodes += [
        helper.make_node("Mul", ["x", "two"], ["twice"]),
        helper.make_node("Add", ["twice", "one"], ["y"]),
    ]
    return onnx_model(nodes, {"x": ("float32", ["batch", 4])}, {"y": ("float32", ["batch", 4])})


@cache
def div_model() -> bytes:
    """`y = a / b` for float32 `[-1, 4]`: 0 / 0 is NaN."""
    shape: Dims = ["batch", 4]
    return onnx_model(
        [helper.make_node("Div", ["a", "b"], ["y"])],
        {"a": ("float32", shape), "b": ("float32", shape)},
        {"y": ("float32", shape)},
    )


@cache
def loop_model() -> bytes:
    """Turn a loop as often as the largest of `trips`, int64 `[-1]`, and answer `y`, which equals `trips`."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["go_on_out"]),
            _constant("step", [1], dtype=TensorProto.INT64, scalar=True),
            helper.make_node("Add", ["count", "step"], ["count_out"]),
        ],
        "body",
        [_value("i", "int64", []), _value("go_on", "bool", []), _value("count", "int64", [])],
        [_value("go_on_out", "bool", []), _value("count_out", "int64", [])],
    )
    nodes = [
        helper.make_node("ReduceMax", ["trips"], ["most"], keepdims=0),
        _constant("true", [1], dtype=TensorProto.BOOL, scalar=True),
        _constant("zero", [0], dtype=TensorProto.INT64, scalar=True),
        helper.make_node("Loop", ["most", "true", "zero"], ["turns"], body=body),
        helper.make_node("Min", ["trips", "turns"], ["y"]),
    ]
    return onnx_model(nodes, {"trips": ("int64", ["batch"])}, {"y": ("int64", ["batch"])})


@cache
def expand_model() -> bytes:
    """Repeat each `x`, float32 `[-1]`, as often as the largest of `width`, int64 `[-1]`, into rows of `y`."""
    nodes = [
        helper.make_node("ReduceMax", ["width"], ["most"], keepdims=1),
        helper.make_node("Shape", ["x"], ["rows"]),
        helper.make_node("Concat", ["rows", "most"], ["shape"], axis=0),
        _constant("last", [1], dtype=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["x", "last"], ["column"]),
        helper.make_node("Expand", ["column", "shape"], ["y"]),
    ]
    inputs: dict[str, tuple[str, Dims]] = {"x": ("float32", ["batch"]), "width": ("int64", ["batch"])}
    return onnx_model(nodes, inputs, {"y": ("float32", ["batch", "width"])})


def onnx_model(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, tuple[str, Dims]],
    outputs: Mapping[str, tuple[str, Dims]],
) -> bytes:
    """Build an ONNX file of `nodes`; inputs and outputs map a name to a dtype and its sizes."""
    graph = helper.make_graph(
        nodes,
        "test",
        [_value(name, dtype, dims) for name, (dtype, dims) in inputs.items()],
        [_value(name, dtype, dims) for name, (dtype, dims) in outputs.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    serialized: bytes = model.SerializeToString()
    return serialized


def _value(name: str, dtype: str, dims: Dims) -> ValueInfoProto:
    kind = TensorProto.STRING if dtype == "bytes" else helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, list(dims))


def _constant(
    name: str, values: Sequence[float], *, dtype: int = TensorProto.FLOAT, scalar: bool = False
) -> NodeProto:
    dims = [] if scalar else [len(values)]
    return helper.make_node("Constant", [], [name], value=helper.make_tensor(name, dtype, dims, values))


def _as_array(values: Array | Sequence[Any]) -> Array:
    if isinstance(values, np.ndarray):
        return values
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
