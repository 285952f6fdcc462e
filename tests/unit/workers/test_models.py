"""A loaded model: requests in, tensors out, and which of its settings win."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from schemas.errors import ModelFailed, ModelUnavailable, ResourceExhausted, UnknownModel
from schemas.models import Signature, TensorSpec
from schemas.tensors import to_array, unpack_bytes
from tests.models import a_config, a_request, add_model, affine_model, load, onnx_model
from workers.engines.base import Arrays, DeviceLost
from workers.models import LoadedModel
from workers.repository import FoundModel, find_model


class FakeModel:
    """Answers `y` as float32 `[n, 2]`, and remembers what it ran."""

    def __init__(
        self,
        *,
        x: TensorSpec | None = None,
        y: TensorSpec | None = None,
        fails: Exception | None = None,
        answers: list[Arrays] | None = None,
    ) -> None:
        self.x = x or TensorSpec(name="x", dtype="float32", shape=(-1, 2))
        self.y = y or TensorSpec(name="y", dtype="float32", shape=(-1, 2))
        self.fails = fails
        self.answers = answers
        self.batches: list[Sequence[Arrays]] = []
        self.closed = False

    def signature(self) -> Signature:
        return Signature(inputs=(self.x,), outputs=(self.y,))

    def run(self, batch: Sequence[Arrays]) -> list[Arrays]:
        self.batches.append(batch)
        if self.fails is not None:
            raise self.fails
        return [{"y": request["x"]} for request in batch] if self.answers is None else self.answers

    def memory_bytes(self) -> int:
        return 1

    def close(self) -> None:
        self.closed = True


def a_model(
    fake: FakeModel, *, folder: Path = Path(), read_labels: tuple[str, ...] = (), **keys: Any
) -> LoadedModel:
    found = FoundModel("fake", 1, folder, a_config(**keys))
    return LoadedModel(found, fake, labels=read_labels, max_batch_size=8, batch_timeout_ms=5)


def test_a_request_goes_from_tensors_to_tensors(test_models: Path) -> None:
    model = load(find_model(test_models, "identity"))
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    [result] = model.run([model.prepare(a_request(x=x))])
    [output] = model.finish(result)
    assert (output.name, output.dtype, output.shape) == ("y", "float32", (2, 4))
    np.testing.assert_array_equal(to_array(output), x)


def test_the_limits_of_model_yaml_win_over_the_workers_defaults(tmp_path: Path) -> None:
    plain = load(add_model(tmp_path, "plain", affine_model()), max_batch_size=8)
    own = load(add_model(tmp_path, "own", affine_model(), max_batch_size=3, batch_timeout_ms=0))
    assert (plain.max_batch_size, plain.batch_timeout_ms) == (8, 5)
    assert (own.max_batch_size, own.batch_timeout_ms) == (3, 0)


def test_the_card_shows_what_callers_need(test_models: Path) -> None:
    card = load(find_model(test_models, "content-type")).card
    assert (card.name, card.version, card.format, card.max_batch_size) == ("content-type", 1, "onnx", 8)
    assert card.raw_input == "file"
    assert card.signature.inputs == (TensorSpec(name="file", dtype="bytes", shape=(-1,)),)
    assert card.signature.outputs == (
        TensorSpec(name="label", dtype="bytes", shape=(-1, 3)),
        TensorSpec(name="score", dtype="float32", shape=(-1, 3)),
    )


def test_only_models_with_preprocessing_need_a_thread_to_prepare(test_models: Path) -> None:
    assert load(find_model(test_models, "content-type")).needs_thread
    assert not load(find_model(test_models, "identity")).needs_thread


def test_requests_of_one_shape_key_run_together_and_others_do_not(tmp_path: Path) -> None:
    shape: list[int | str] = ["batch", "width"]
    negate = onnx_model(
        [helper.make_node("Neg", ["x"], ["y"])], {"x": ("float32", shape)}, {"y": ("float32", shape)}
    )
    model = load(add_model(tmp_path, "any-width", negate))
    keys = [
        model.shape_key(model.prepare(a_request(x=np.zeros(shape, dtype=np.float32))))
        for shape in ((1, 2), (3, 2), (1, 5))
    ]
    assert keys[0] == keys[1]
    assert keys[0] != keys[2]


def test_a_request_for_another_version_is_refused(test_models: Path) -> None:
    model = load(find_model(test_models, "identity"))
    with pytest.raises(UnknownModel, match="version 2 of model 'identity' is not served; version 1 is"):
        model.prepare(a_request(x=np.zeros((1, 4), dtype=np.float32), version=2))


def test_nan_in_an_output_is_an_answer_not_a_failure(test_models: Path) -> None:
    model = load(find_model(test_models, "div"))
    zeros = np.zeros((1, 4), dtype=np.float32)
    [result] = model.run([model.prepare(a_request(a=zeros, b=zeros))])
    assert np.isnan(to_array(model.finish(result)[0])).all()


def test_the_loop_model_answers_each_request_its_own_trips(test_models: Path) -> None:
    model = load(find_model(test_models, "loop"))
    batch = [model.prepare(a_request(trips=np.array(trips))) for trips in ([3], [1, 0])]
    assert [result["y"].tolist() for result in model.run(batch)] == [[3], [1, 0]]


def test_an_input_that_needs_too_much_memory_is_named_so_and_the_model_lives(test_models: Path) -> None:
    model = load(find_model(test_models, "expand"))
    x = np.ones(1, dtype=np.float32)
    with pytest.raises(ResourceExhausted, match="needs more memory than there is") as failed:
        model.run([model.prepare(a_request(x=x, width=np.array([10**13])))])
    assert "/" not in failed.value.message
    [result] = model.run([model.prepare(a_request(x=x, width=np.array([3])))])
    assert result["y"].tolist() == [[1, 1, 1]]


def test_every_batch_size_is_warmed_up_but_none_above_the_limit() -> None:
    fake = FakeModel()
    a_model(fake, max_batch_size=4, warmup={"batch_sizes": [1, 4, 64]}).warm_up()
    assert [batch[0]["x"].shape for batch in fake.batches] == [(1, 2), (4, 2)]


def test_warming_up_fills_sizes_that_may_vary_with_one() -> None:
    fake = FakeModel(x=TensorSpec(name="x", dtype="bytes", shape=(-1, -1)))
    a_model(fake).warm_up()
    assert fake.batches[0][0]["x"].tolist() == [[b""]]


def test_a_sample_is_what_the_model_warms_up_with(tmp_path: Path) -> None:
    (tmp_path / "sample.txt").write_bytes(b"hello")
    fake = FakeModel(x=TensorSpec(name="x", dtype="bytes", shape=(-1,)))
    a_model(fake, folder=tmp_path, warmup={"batch_sizes": [2], "sample": "sample.txt"}).warm_up()
    assert fake.batches[0][0]["x"].tolist() == [b"hello", b"hello"]


def test_a_sample_that_is_missing_is_named(tmp_path: Path) -> None:
    fake = FakeModel(x=TensorSpec(name="x", dtype="bytes", shape=(-1,)))
    with pytest.raises(ModelUnavailable, match=r"'sample\.txt' is missing"):
        a_model(fake, folder=tmp_path, warmup={"sample": "sample.txt"}).warm_up()


def test_a_sample_for_a_model_of_numbers_is_refused() -> None:
    with pytest.raises(ModelUnavailable, match=r"warmup\.sample: the model has not one input of dtype bytes"):
        a_model(FakeModel(), warmup={"sample": "sample.txt"}).warm_up()


def test_a_model_that_can_not_warm_up_is_unavailable() -> None:
    with pytest.raises(ModelUnavailable, match="warming up failed: the model raised"):
        a_model(FakeModel(fails=ModelFailed("the model raised"))).warm_up()


def test_a_lost_device_is_never_mistaken_for_a_broken_model() -> None:
    with pytest.raises(DeviceLost):
        a_model(FakeModel(fails=DeviceLost("gone"))).warm_up()


def test_a_run_that_does_not_answer_every_request_answers_none() -> None:
    model = a_model(FakeModel(answers=[]))
    x = np.zeros((1, 2), dtype=np.float32)
    with pytest.raises(ModelFailed, match="0 results for 2 requests"):
        model.run([{"x": x}, {"x": x}])


def test_a_result_without_a_declared_output_is_a_failure_of_the_model() -> None:
    with pytest.raises(ModelFailed, match="no output 'y'"):
        a_model(FakeModel()).finish({"z": np.zeros(1)})


def test_labels_and_scores_stand_in_place_of_the_models_own_output() -> None:
    model = a_model(
        FakeModel(),
        read_labels=("cat", "dog"),
        labels="labels.txt",
        postprocessing={"name": "classify", "top_k": 1},
    )
    [result] = model.run([{"x": np.array([[0, 9]], dtype=np.float32)}])
    label, score = model.finish(result)
    assert unpack_bytes(label.data) == [b"dog"]
    assert to_array(score).shape == (1, 1)


@pytest.mark.parametrize("shape", [(), (5, 2)])
def test_an_output_whose_first_dimension_is_no_batch_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelUnavailable, match=r"'y' has shape .* first dimension must be the batch"):
        a_model(FakeModel(y=TensorSpec(name="y", dtype="float32", shape=shape)))


def test_a_first_dimension_of_one_means_one_item_at_a_time() -> None:
    one = TensorSpec(name="x", dtype="float32", shape=(1, 2))
    assert a_model(FakeModel(x=one)).max_batch_size == 1
    with pytest.raises(ModelUnavailable, match="max_batch_size: is 4, but the model takes one item"):
        a_model(FakeModel(x=one), max_batch_size=4)


def test_preprocessing_that_does_not_fit_the_model_is_refused() -> None:
    with pytest.raises(
        ModelUnavailable, match=r"'image' makes 'x' float32 \[-1, 3, 224, 224\], but the model"
    ):
        a_model(FakeModel(), preprocessing={"name": "image"})


def test_a_model_that_does_not_fit_its_model_yaml_is_closed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeModel(y=TensorSpec(name="y", dtype="float32", shape=()))
    monkeypatch.setattr("workers.models.find_engine", lambda _: FakeEngine(fake))
    with pytest.raises(ModelUnavailable):
        load(FoundModel("fake", 1, tmp_path, a_config()))
    assert fake.closed


class FakeEngine:
    """Loads the one model that it was given."""

    def __init__(self, fake: FakeModel) -> None:
        self.fake = fake

    def load(self, folder: Path, config: object, *, device: str) -> FakeModel:
        return self.fake


def test_python_models_are_refused_unless_allowed(tmp_path: Path) -> None:
    found = FoundModel("custom", 1, tmp_path, a_config(format="python"))
    with pytest.raises(ModelUnavailable, match="ALLOW_PYTHON_MODELS is off"):
        load(found)
    with pytest.raises(ModelUnavailable, match="inputs and outputs are required"):
        load(found, allow_python=True)


def test_an_engine_that_does_not_exist_is_refused_with_the_known_ones_named(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="there is no engine 'caffe'; known are onnx, python"):
        load(FoundModel("old", 1, tmp_path, a_config(format="caffe")))
