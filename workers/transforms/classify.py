"""Classification: raw class scores become the best labels and their scores."""

from collections.abc import Sequence

import numpy as np

from schemas.errors import ModelFailed, ModelUnavailable
from schemas.models import ClassifyPostprocessing, Signature, TensorSpec
from schemas.tensors import BYTES, Array
from workers.engines.base import Arrays


class Classify:
    """Answers `label` bytes `[n, k]` and `score` float32 `[n, k]`, best first; ties in the labels' order."""

    def __init__(self, config: ClassifyPostprocessing, labels: Sequence[str], signature: Signature) -> None:
        """Raises ModelUnavailable if the model does not give one score for each label."""
        output = signature.outputs[0]
        one = len(signature.outputs) == 1 and len(output.shape) == 2 and output.dtype.startswith("float")
        if not one:
            raise ModelUnavailable("postprocessing 'classify' needs one output, float [-1, classes]")
        if output.shape[1] not in (-1, len(labels)):
            raise ModelUnavailable(
                f"there are {len(labels)} labels, but output {output.name!r} has {output.shape[1]} classes"
            )
        self._output = output.name
        self._labels = np.array([label.encode() for label in labels], dtype=object)
        self._top_k = min(config.top_k, len(labels))
        self._softmax = config.softmax

    def outputs(self) -> tuple[TensorSpec, ...]:
        """Return what callers get in place of the model's own output."""
        shape = (-1, self._top_k)
        return (
            TensorSpec(name="label", dtype=BYTES, shape=shape),
            TensorSpec(name="score", dtype="float32", shape=shape),
        )

    def run(self, outputs: Arrays) -> Arrays:
        """Pick the best of each row. Raises ModelFailed if there is not one score for each label."""
        scores = outputs[self._output].astype(np.float32)
        if scores.shape[1:] != self._labels.shape:
            raise ModelFailed(f"the model gave scores of shape {list(scores.shape)}")
        if self._softmax:
            scores = _softmax(scores)
        best = np.argsort(-scores, axis=1, kind="stable")[:, : self._top_k]
        return {"label": self._labels[best], "score": np.take_along_axis(scores, best, axis=1)}


def _softmax(logits: Array) -> Array:
    with np.errstate(invalid="ignore"):  # NaN and infinite scores stay what they are: NaN
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares: Array = powers / powers.sum(axis=1, keepdims=True)
    return shares
