"""What holds for every engine, whatever runs inside it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import ModelFailed, ModelUnavailable
from schemas.models import Signature, TensorSpec
from schemas.tensors import Array
from tests.conformance.cases import CASES, EngineCase
from tests.models import a_config
from workers.engines.base import Arrays, BatchModel, find_engine


@pytest.fixture(params=CASES, ids=lambda case: case.engine)
def case(request: pytest.FixtureRequest) -> EngineCase:
    chosen: EngineCase = request.param
    return chosen


@pytest.fixture
def folder(case: EngineCase, tmp_path: Path) -> Path:
    case.write(tmp_path)
    return tmp_path


@pytest.fixture
def model(case: EngineCase, folder: Path) -> Iterator[BatchModel]:
    loaded = load(case, folder)
    yield loaded
    loaded.close()


def load(case: EngineCase, folder: Path, *, device: str = "cpu") -> BatchModel:
    config = a_config(format=case.engine, **case.config)
    return find_engine(case.engine).load(folder, config, device=device)


def rows(count: int, *, start: float = 0.0) -> dict[str, Array]:
    """A request of `count` rows, read-only as requests are."""
    x = np.arange(count * 4, dtype=np.float32).reshape(count, 4) + np.float32(start)
    x.flags.writeable = False
    return {"x": x}


def expected(request: Arrays) -> Array:
    answer: Array = request["x"] * 2 + 1
    return answer


def test_the_signature_names_inputs_and_outputs_with_the_batch_first(model: BatchModel) -> None:
    assert model.signature() == Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(-1, 4)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(-1, 4)),),
    )


def test_one_request_gets_as_many_rows_as_it_has(model: BatchModel) -> None:
    request = rows(3)
    [result] = model.run([request])
    np.testing.assert_array_equal(result["y"], expected(request))


def test_requests_of_different_sizes_each_get_their_own_rows_in_order(model: BatchModel) -> None:
    batch = [rows(2, start=100), rows(1, start=200), rows(3, start=300)]
    results = model.run(batch)
    assert len(results) == len(batch)
    for request, result in zip(batch, results, strict=True):
        np.testing.assert_array_equal(result["y"], expected(request))


def test_a_request_gets_the_same_answer_alone_and_in_a_batch(model: BatchModel) -> None:
    request = rows(2, start=7)
    [alone] = model.run([request])
    in_batch = model.run([rows(1), request, rows(4)])[1]
    np.testing.assert_array_equal(alone["y"], in_batch["y"])


def test_running_leaves_the_request_as_it_was(model: BatchModel) -> None:
    request = rows(2)
    model.run([request])
    np.testing.assert_array_equal(request["x"], rows(2)["x"])


def test_a_run_that_fails_is_a_model_failure_and_the_next_run_works(model: BatchModel) -> None:
    with pytest.raises(ModelFailed):
        model.run([{"x": np.zeros((1, 5), dtype=np.float32)}])
    [result] = model.run([rows(1)])
    np.testing.assert_array_equal(result["y"], expected(rows(1)))


def test_a_model_holds_memory(model: BatchModel) -> None:
    assert model.memory_bytes() > 0


def test_closing_twice_does_nothing(model: BatchModel) -> None:
    model.close()
    model.close()


def test_a_closed_model_is_unavailable(model: BatchModel) -> None:
    model.close()
    with pytest.raises(ModelUnavailable):
        model.run([rows(1)])


def test_two_models_of_one_format_do_not_share_anything(case: EngineCase, folder: Path) -> None:
    one, other = load(case, folder), load(case, folder)
    one.close()
    [result] = other.run([rows(1)])
    np.testing.assert_array_equal(result["y"], expected(rows(1)))
    other.close()


def test_a_missing_file_is_named_without_the_path_of_this_machine(case: EngineCase, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=f"'{case.file}' is missing") as refused:
        load(case, tmp_path)
    assert str(tmp_path) not in refused.value.message


def test_a_cut_off_file_is_refused_with_a_reason(case: EngineCase, folder: Path) -> None:
    whole = (folder / case.file).read_bytes()
    (folder / case.file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelUnavailable, match=case.file) as refused:
        load(case, folder)
    assert str(folder) not in refused.value.message


def test_a_file_that_is_a_link_is_refused(case: EngineCase, folder: Path, tmp_path: Path) -> None:
    (folder / case.file).rename(tmp_path / "elsewhere")
    (folder / case.file).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelUnavailable, match="is a link"):
        load(case, folder)


def test_a_file_outside_of_the_folder_is_refused(case: EngineCase, folder: Path) -> None:
    config = a_config(format=case.engine, file=f"../{case.file}", **case.config)
    with pytest.raises(ModelUnavailable, match="must lie in the model's folder"):
        find_engine(case.engine).load(folder, config, device="cpu")
