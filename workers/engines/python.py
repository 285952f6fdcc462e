"""Runs a class of the model's own: the Python code in `model.py` beside model.yaml."""

import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from schemas.errors import InferenceError, ModelFailed, ModelUnavailable
from schemas.models import ModelConfig, Signature, TensorSpec
from schemas.tensors import BYTES, Array
from workers.engines.base import Arrays, run_error, split, stack
from workers.files import check_no_links, folder_bytes, model_file

DEFAULT_FILE = "model.py"
DEFAULT_CLASS = "Model"

_module_numbers = count(1)


class UserModel(Protocol):
    """What the class in `model.py` must be. It may also have `close()`, called once when it is unloaded."""

    def __init__(self, folder: Path, parameters: Mapping[str, Any]) -> None:
        """Load what is needed from `folder`. `parameters` are those of model.yaml, and `device`: `cuda:0`."""

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Answer every output of model.yaml for the stacked batch, one row for each row of the inputs.

        Elements of dtype `bytes` are Python bytes in an object array. Called by one thread at a time. May
        raise InvalidInput of `schemas.errors`; anything else counts as a failure of the model.
        """


class PythonEngine:
    """Loads `model.py`, or the `file` of model.yaml, whose `inputs` and `outputs` are required.

    `parameters` of model.yaml: `class` (default `Model`), and whatever the class wants.
    This runs code of the repository in our process; `workers.models` refuses it unless it is allowed.
    """

    def load(self, folder: Path, config: ModelConfig, *, device: str) -> "PythonModel":
        """Import the file and make its class. Blocks. Raises ModelUnavailable."""
        if not config.inputs or not config.outputs:
            raise ModelUnavailable("model.yaml: inputs and outputs are required for format 'python'")
        path = model_file(folder, config.file or DEFAULT_FILE)
        check_no_links(folder)
        parameters = dict(config.parameters)
        name = str(parameters.pop("class", DEFAULT_CLASS))
        module_name = f"model_serving_user_model_{next(_module_numbers)}"
        try:
            module = _import(path, module_name)
            user_model = getattr(module, name)(folder, {**parameters, "device": device})
        except Exception as error:
            sys.modules.pop(module_name, None)
            raise ModelUnavailable(_load_reason(error, path, class_name=name)) from error
        signature = Signature(inputs=config.inputs, outputs=config.outputs)
        return PythonModel(
            user_model, signature, path=path, module_name=module_name, size_bytes=folder_bytes(folder)
        )


class PythonModel:
    """A loaded class, and the checks that hold its answers to model.yaml."""

    def __init__(
        self,
        user_model: UserModel,
        signature: Signature,
        *,
        path: Path,
        module_name: str,
        size_bytes: int,
    ) -> None:
        self._user_model: UserModel | None = user_model
        self._signature = signature
        self._path = path
        self._module_name = module_name
        self._size_bytes = size_bytes

    def signature(self) -> Signature:
        """Return what model.yaml says."""
        return self._signature

    def run(self, batch: Sequence[Arrays]) -> list[Arrays]:
        """Run the batch as one. Blocks. Raises ModelFailed, ResourceExhausted or DeviceLost."""
        if self._user_model is None:
            raise ModelUnavailable("the model is closed")
        try:
            # A lone request is a read-only view of the message; in a batch it would have been a copy.
            inputs = {name: np.require(array, requirements="W") for name, array in stack(batch).items()}
            answer = self._user_model.run(inputs)
        except InferenceError:
            raise
        except Exception as error:
            raise run_error(error, reason=_where(error, self._path)) from error
        outputs = {spec.name: _checked(answer, spec) for spec in self._signature.outputs}
        return split(outputs, batch)

    def memory_bytes(self) -> int:
        """Estimate by the size of the model's files."""
        return self._size_bytes

    def close(self) -> None:
        """Call the class's own `close`, if it has one, and forget the class. Twice does nothing."""
        user_model, self._user_model = self._user_model, None
        if user_model is None:
            return
        sys.modules.pop(self._module_name, None)
        close = getattr(user_model, "close", None)
        if close is not None:
            close()


def _import(path: Path, module_name: str) -> ModuleType:
    spec = spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ModelUnavailable(f"file {path.name!r} is not a Python file")
    module = module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look their module up while it loads
    spec.loader.exec_module(module)
    return module


def _load_reason(error: Exception, path: Path, *, class_name: str) -> str:
    if isinstance(error, ModelUnavailable):
        return error.message
    if isinstance(error, ModuleNotFoundError):
        return f"file {path.name!r} needs a module that is missing: {error.name}"
    if isinstance(error, SyntaxError):
        return f"file {path.name!r} is not valid Python, at line {error.lineno}"
    if isinstance(error, AttributeError) and error.name == class_name:
        return f"file {path.name!r} has no class {class_name!r}"
    return f"loading failed: {_where(error, path)}"


def _where(error: Exception, path: Path) -> str:
    """Name the exception and the user's line. Its text may hold anything, so only our log shows it."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    at = f" at line {lines[-1]} of {path.name}" if lines else ""
    return f"{type(error).__name__}{at}"


def _checked(answer: Any, spec: TensorSpec) -> Array:
    if not isinstance(answer, Mapping) or not isinstance(answer.get(spec.name), np.ndarray):
        raise ModelFailed(f"the model did not answer output {spec.name!r} as an array")
    array: Array = answer[spec.name]
    shape_fits = array.ndim == len(spec.shape) and all(
        expected in (-1, got) for expected, got in zip(spec.shape[1:], array.shape[1:], strict=True)
    )
    if not shape_fits or not _dtype_fits(array, spec):
        raise ModelFailed(
            f"output {spec.name!r} is declared {spec.dtype} {list(spec.shape)}, "
            f"the model gave {array.dtype} {list(array.shape)}"
        )
    return array


def _dtype_fits(array: Array, spec: TensorSpec) -> bool:
    if spec.dtype != BYTES:
        return array.dtype.name == spec.dtype
    return array.dtype.kind in "SU" or all(isinstance(value, (bytes, str)) for value in array.ravel())
