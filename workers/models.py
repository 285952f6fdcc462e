"""A model as a worker serves it: the engine's model between its preprocessing and its postprocessing."""

from collections.abc import Hashable, Sequence

import numpy as np

from schemas.envelope import InferRequest
from schemas.errors import InferenceError, ModelFailed, ModelUnavailable, UnknownModel
from schemas.models import ModelCard, ModelConfig, Signature, TensorSpec, raw_input_of
from schemas.tensors import BYTES, Array, Tensor, from_array
from workers.checks import check_inputs
from workers.engines.base import Arrays, BatchModel, find_engine
from workers.files import model_file, read_lines
from workers.repository import FoundModel
from workers.transforms.classify import Classify
from workers.transforms.preprocessing import Preprocess, load_preprocessing

PYTHON_FORMAT = "python"


class LoadedModel:
    """One version of one model, on a device.

    A request goes through `prepare` (any thread, several at once), `run` (the engine's one thread, in a
    batch with others of the same `shape_key`) and `finish`.
    """

    def __init__(
        self,
        found: FoundModel,
        engine_model: BatchModel,
        *,
        labels: tuple[str, ...],
        max_batch_size: int,
        batch_timeout_ms: float,
    ) -> None:
        """Takes `engine_model` over. Raises ModelUnavailable if it does not fit its model.yaml."""
        config = found.config
        self.name = found.name
        self.version = found.version
        self.config: ModelConfig = config
        self.labels = labels
        self.batch_timeout_ms = (
            batch_timeout_ms if config.batch_timeout_ms is None else config.batch_timeout_ms
        )
        self._folder = found.folder
        self._engine_model = engine_model
        self._engine_signature = engine_model.signature()
        self.max_batch_size = _max_batch_size(self._engine_signature, config, default=max_batch_size)
        self._preprocess: Preprocess | None = None
        self._classify: Classify | None = None
        if config.preprocessing is not None:
            self._preprocess = load_preprocessing(config.preprocessing, found.folder, self._engine_signature)
        if config.postprocessing is not None:
            self._classify = Classify(config.postprocessing, labels, self._engine_signature)
        self.signature = self._public_signature()

    def _public_signature(self) -> Signature:
        own = self._engine_signature
        return Signature(
            inputs=(self._preprocess.public,) if self._preprocess else own.inputs,
            outputs=self._classify.outputs() if self._classify else own.outputs,
        )

    @property
    def card(self) -> ModelCard:
        """What the worker announces of the model."""
        return ModelCard(
            name=self.name,
            version=self.version,
            format=self.config.format,
            description=self.config.description,
            signature=self.signature,
            max_batch_size=self.max_batch_size,
            raw_input=raw_input_of(self.signature),
        )

    @property
    def needs_thread(self) -> bool:
        """Whether `prepare` is heavy work; otherwise it is a few checks, fit for the event loop."""
        return self._preprocess is not None

    def prepare(self, request: InferRequest) -> Arrays:
        """Check a request and turn it into what the engine takes. Blocks.

        Raises InvalidInput naming the input, TooLarge over `max_batch_size` items, and UnknownModel if the
        request is for another version.
        """
        if request.version not in (None, self.version):
            raise UnknownModel(
                f"version {request.version} of model {self.name!r} is not served; version {self.version} is",
                field="version",
            )
        arrays = check_inputs(request, self.signature, max_items=self.max_batch_size)
        if self._preprocess is None:
            return arrays
        return self._preprocess.run(list(arrays[self._preprocess.public.name]), field="inputs[0]")

    def shape_key(self, arrays: Arrays) -> Hashable:
        """Return a key that is equal for prepared requests that may run in one batch."""
        return tuple((name, array.dtype.str, array.shape[1:]) for name, array in arrays.items())

    def run(self, batch: Sequence[Arrays]) -> list[Arrays]:
        """Run prepared requests of one `shape_key`; one result for each, in order. Blocks.

        Raises ModelFailed, ResourceExhausted or DeviceLost.
        """
        results = self._engine_model.run(batch)
        if len(results) != len(batch):
            raise ModelFailed(f"the model gave {len(results)} results for {len(batch)} requests")
        if self._classify is None:
            return results
        return [self._classify.run(result) for result in results]

    def finish(self, arrays: Arrays) -> tuple[Tensor, ...]:
        """Copy one result out, in the signature's order. Raises ModelFailed if an output is missing."""
        names = [spec.name for spec in self.signature.outputs]
        if missing := [name for name in names if name not in arrays]:
            raise ModelFailed(f"the model gave no output {missing[0]!r}")
        return tuple(from_array(name, arrays[name]) for name in names)

    def warm_up(self) -> None:
        """Run each batch size of `warmup` that the model takes, with its sample or with zeros. Blocks.

        Raises ModelUnavailable if the model can not run them; DeviceLost passes through.
        """
        sizes = [n for n in self.config.warmup.batch_sizes if n <= self.max_batch_size] or [1]
        try:
            for size in sizes:
                self.run([self._warm_up_input(size)])
        except ModelUnavailable:
            raise
        except InferenceError as error:
            raise ModelUnavailable(f"warming up failed: {error.message}") from error

    def _warm_up_input(self, items: int) -> Arrays:
        sample = self.config.warmup.sample
        if sample is None:
            return {spec.name: _zeros(spec, items) for spec in self._engine_signature.inputs}
        name = raw_input_of(self.signature)
        if name is None:
            raise ModelUnavailable("model.yaml: warmup.sample: the model has not one input of dtype bytes")
        values = np.empty(items, dtype=object)
        values[:] = [model_file(self._folder, sample).read_bytes()] * items
        return self.prepare(InferRequest(model=self.name, inputs=(from_array(name, values),)))

    def memory_bytes(self) -> int:
        """Estimate what the model holds on its device, in bytes."""
        return self._engine_model.memory_bytes()

    def close(self) -> None:
        """Free the model. Calling it twice does nothing."""
        self._engine_model.close()


def load_model(
    found: FoundModel,
    *,
    device: str,
    max_batch_size: int,
    batch_timeout_ms: float,
    allow_python: bool = False,
) -> LoadedModel:
    """Load a model on `device` (`cpu`, `cuda:0`). Blocks. Raises ModelUnavailable with the reason.

    `max_batch_size` (items) and `batch_timeout_ms` hold where model.yaml does not say. Models of format
    `python` run code from the repository in this process, so they are refused unless `allow_python`.
    """
    config = found.config
    if config.format == PYTHON_FORMAT and not allow_python:
        raise ModelUnavailable("models of format 'python' run their own code; ALLOW_PYTHON_MODELS is off")
    labels = read_lines(found.folder, config.labels) if config.labels is not None else ()
    engine_model = find_engine(config.format).load(found.folder, config, device=device)
    try:
        return LoadedModel(
            found,
            engine_model,
            labels=labels,
            max_batch_size=max_batch_size,
            batch_timeout_ms=batch_timeout_ms,
        )
    except BaseException:
        engine_model.close()
        raise


def _max_batch_size(signature: Signature, config: ModelConfig, *, default: int) -> int:
    """Return how many items one run may hold: 1 where the model's own first dimension is 1."""
    if not signature.inputs or not signature.outputs:
        raise ModelUnavailable("the model has no inputs or no outputs")
    specs = (*signature.inputs, *signature.outputs)
    for spec in specs:
        if not spec.shape or spec.shape[0] not in (-1, 1):
            raise ModelUnavailable(
                f"{spec.name!r} has shape {list(spec.shape)}; its first dimension must be the batch: -1, "
                "or 1 for a model that takes one item at a time"
            )
    if all(spec.shape[0] == -1 for spec in specs):
        return config.max_batch_size or default
    if config.max_batch_size not in (None, 1):
        raise ModelUnavailable(
            f"model.yaml: max_batch_size: is {config.max_batch_size}, but the model takes one item at a time"
        )
    return 1


def _zeros(spec: TensorSpec, items: int) -> Array:
    shape = (items, *(1 if n == -1 else n for n in spec.shape[1:]))
    if spec.dtype == BYTES:
        return np.full(shape, b"", dtype=object)
    return np.zeros(shape, dtype=spec.dtype)
