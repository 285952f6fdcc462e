"""Scores as labels: the best first, each with its share."""

import numpy as np
import pytest

from schemas.errors import ModelFailed, ModelUnavailable
from schemas.models import ClassifyPostprocessing, Signature, TensorSpec
from schemas.tensors import Array
from workers.transforms.classify import Classify


def a_classify(
    *, labels: tuple[str, ...] = ("cat", "dog", "owl"), shape: tuple[int, ...] = (-1, 3), **config: object
) -> Classify:
    signature = Signature(inputs=(), outputs=(TensorSpec(name="logits", dtype="float32", shape=shape),))
    keys = {"name": "classify", "top_k": 2, **config}
    return Classify(ClassifyPostprocessing.model_validate(keys), labels, signature)


def logits(*rows: list[float]) -> dict[str, Array]:
    return {"logits": np.array(rows, dtype=np.float32)}


def test_the_best_labels_come_first_with_their_share() -> None:
    result = a_classify().run(logits([1, 3, 2], [9, 0, 0]))
    assert result["label"].tolist() == [[b"dog", b"owl"], [b"cat", b"dog"]]
    np.testing.assert_allclose(result["score"][0], [0.665, 0.245], atol=0.001)
    assert result["score"].dtype == np.float32


def test_scores_of_a_model_that_ends_in_a_softmax_stay_as_they_are() -> None:
    assert a_classify(softmax=False).run(logits([0.25, 0.5, 0.25]))["score"].tolist() == [[0.5, 0.25]]


def test_labels_of_equal_score_keep_their_order() -> None:
    assert a_classify().run(logits([1, 1, 1]))["label"].tolist() == [[b"cat", b"dog"]]


def test_huge_and_infinite_scores_do_not_overflow_into_an_error() -> None:
    assert a_classify().run(logits([1e38, -1e38, 0]))["score"].tolist() == [[1, 0]]
    assert np.isnan(a_classify().run(logits([np.inf, 0, 0]))["score"]).any()


def test_no_more_labels_are_answered_than_there_are() -> None:
    assert [spec.shape for spec in a_classify(top_k=5).outputs()] == [(-1, 3), (-1, 3)]


def test_labels_must_be_as_many_as_the_classes() -> None:
    with pytest.raises(ModelUnavailable, match="there are 2 labels, but output 'logits' has 3 classes"):
        a_classify(labels=("cat", "dog"))
    with pytest.raises(ModelFailed, match=r"scores of shape \[1, 2\]"):
        a_classify(shape=(-1, -1)).run(logits([0, 1]))


def test_an_output_that_is_no_scores_is_refused() -> None:
    with pytest.raises(ModelUnavailable, match="needs one output"):
        a_classify(shape=(-1, 3, 3))
