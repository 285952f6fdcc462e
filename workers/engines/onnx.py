"""Runs ONNX models with ONNX Runtime, on the CPU or on one CUDA device."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.errors import InferenceError, ModelFailed, ModelUnavailable
from schemas.models import ModelConfig, Signature, TensorSpec
from schemas.tensors import BYTES, Array
from workers.engines.base import Arrays, run_error, split, stack
from workers.files import check_no_links, folder_bytes, model_file

DEFAULT_FILE = "model.onnx"

_DTYPES = {
    "tensor(bool)": "bool",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(string)": BYTES,
}
_DEVICE = re.compile(r"cpu|cuda(?::(\d{1,3}))?")
_SOURCE_LINE = re.compile(r"/\S+:\d+ .*?\) ")  # file, line and C++ signature that precede the text
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_PATH = re.compile(r"(?<![\w.])\"?/[^\s:\"]+\"?")
_MAX_REASON_CHARS = 300


class _Parameters(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    intra_op_threads: int = Field(default=1, ge=1, le=256, description="threads inside one operator")


class OnnxEngine:
    """Loads `model.onnx`, or the `file` of model.yaml, with its external data beside it.

    `parameters` of model.yaml: `intra_op_threads` (default 1).
    `inputs` and `outputs` of model.yaml may narrow what the file says (fix a size, allow NaN, leave out
    outputs), and must where the file gives no shape; they may not contradict it.
    """

    def load(self, folder: Path, config: ModelConfig, *, device: str) -> "OnnxModel":
        """Load the model on `device` (`cpu`, `cuda` or `cuda:N`). Blocks. Raises ModelUnavailable."""
        parameters = _parameters(config)
        path = model_file(folder, config.file or DEFAULT_FILE)
        check_no_links(folder)  # external data is opened by the library, which follows hard links
        try:
            session = _open_session(path, parameters, device=device)
        except InferenceError:
            raise
        except ImportError as error:
            raise ModelUnavailable(f"engine 'onnx' needs a library that is missing: {error.name}") from error
        except Exception as error:  # ONNX Runtime's exceptions have no class of their own to catch
            reason = _reason(error, folder=path.parent)
            raise ModelUnavailable(f"file {path.name!r} can not be loaded: {reason}") from error
        signature = Signature(
            inputs=_specs(session.get_inputs(), config.inputs, kind="input"),
            outputs=_specs(session.get_outputs(), config.outputs, kind="output"),
        )
        return OnnxModel(session, signature, size_bytes=folder_bytes(path.parent))


class OnnxModel:
    """A loaded ONNX model.

    A first dimension of 1 in the file stays 1 in the signature: such a model runs one item at a time.
    """

    def __init__(self, session: Any, signature: Signature, *, size_bytes: int) -> None:
        self._session = session
        self._signature = signature
        self._size_bytes = size_bytes
        self._texts = [spec.name for spec in signature.inputs if spec.dtype == BYTES]
        self._outputs = [spec.name for spec in signature.outputs]

    def signature(self) -> Signature:
        """Return what the file says, narrowed by model.yaml."""
        return self._signature

    def run(self, batch: Sequence[Arrays]) -> list[Arrays]:
        """Run the batch as one. Blocks. Raises ModelFailed, ResourceExhausted or DeviceLost.

        Elements of string inputs must be UTF-8.
        """
        if self._session is None:
            raise ModelUnavailable("the model is closed")
        try:
            feeds = stack(batch)
            for name in self._texts:
                feeds[name] = _decode(feeds[name], name=name)
            values = self._session.run(self._outputs, feeds)
        except InferenceError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no class of their own to catch
            raise run_error(error, reason=_reason(error)) from error
        return split(dict(zip(self._outputs, values, strict=True)), batch)

    def memory_bytes(self) -> int:
        """Estimate by the size of the model's files, which is about what the weights take when loaded."""
        return self._size_bytes

    def close(self) -> None:
        """Drop the session, which frees its memory once no run uses it."""
        self._session = None


def _parameters(config: ModelConfig) -> _Parameters:
    try:
        return _Parameters.model_validate(dict(config.parameters))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ModelUnavailable(f"model.yaml: parameters.{key}: {first['msg']}") from error


def _open_session(path: Path, parameters: _Parameters, *, device: str) -> Any:
    import onnxruntime  # noqa: PLC0415 - engines import their library only when they load

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = parameters.intra_op_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised; the log would repeat them with our paths
    # Spinning threads take the core that another worker, or our own event loop, needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    providers = _providers(device, available=onnxruntime.get_available_providers())
    return onnxruntime.InferenceSession(path, options, providers=providers)


def _providers(device: str, *, available: Sequence[str]) -> list[Any]:
    match = _DEVICE.fullmatch(device)
    if match is None:
        raise ModelUnavailable(f"engine 'onnx' runs on cpu or cuda:N, not on {device!r}")
    if device == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in available:  # it would fall back to the CPU without a word
        raise ModelUnavailable("this build of ONNX Runtime has no CUDA; install onnxruntime-gpu")
    return [("CUDAExecutionProvider", {"device_id": int(match[1] or 0)}), "CPUExecutionProvider"]


def _specs(
    found: Sequence[Any], declared: tuple[TensorSpec, ...] | None, *, kind: str
) -> tuple[TensorSpec, ...]:
    in_file = {node.name: _spec(node, kind=kind) for node in found}
    if declared is None:
        for spec in in_file.values():
            if not spec.shape:  # ONNX Runtime reports a scalar and an unknown shape alike
                raise ModelUnavailable(
                    f"{kind} {spec.name!r} has no shape in the file; declare {kind}s in model.yaml"
                )
        return tuple(in_file.values())
    names = {spec.name for spec in declared}
    complete = names == in_file.keys() if kind == "input" else names <= in_file.keys()
    if not complete:
        raise ModelUnavailable(f"model.yaml: {kind}s: the file's {kind}s are {', '.join(in_file)}")
    for spec in declared:
        _check_narrows(spec, in_file[spec.name], kind=kind)
    return declared


def _spec(node: Any, *, kind: str) -> TensorSpec:
    if node.type not in _DTYPES:
        raise ModelUnavailable(f"{kind} {node.name!r} is a {node.type}, which can not be served")
    shape = tuple(n if isinstance(n, int) and n >= 0 else -1 for n in node.shape or ())
    return TensorSpec(name=node.name, dtype=_DTYPES[node.type], shape=shape)


def _check_narrows(declared: TensorSpec, in_file: TensorSpec, *, kind: str) -> None:
    fits = not in_file.shape or (
        len(declared.shape) == len(in_file.shape)
        and all(there in (-1, here) for here, there in zip(declared.shape, in_file.shape, strict=True))
    )
    if declared.dtype != in_file.dtype or not fits:
        raise ModelUnavailable(
            f"model.yaml: {kind}s: {kind} {declared.name!r} is {in_file.dtype} {list(in_file.shape)} "
            f"in the file, not {declared.dtype} {list(declared.shape)}"
        )


def _decode(values: Array, *, name: str) -> Array:
    texts = np.empty(values.size, dtype=object)
    try:
        texts[:] = [value.decode() for value in values.ravel()]
    except UnicodeDecodeError as error:
        raise ModelFailed(f"input {name!r} must be UTF-8 text for this model") from error
    return texts.reshape(values.shape)


def _reason(error: Exception, *, folder: Path | None = None) -> str:
    """Say what went wrong without the paths of this machine or of the one that built the library."""
    text = str(error) if folder is None else str(error).replace(f"{folder}/", "")
    text = _SOURCE_LINE.sub("", _PREFIX.sub("", text))
    return " ".join(_PATH.sub("(file)", text).split())[:_MAX_REASON_CHARS] or type(error).__name__
