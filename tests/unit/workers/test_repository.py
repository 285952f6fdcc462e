"""A folder as model repository: what is found, and how what is broken is named."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.errors import InvalidInput, ModelUnavailable, UnknownModel
from workers.repository import MAX_CONFIG_BYTES, Scan, find_model, scan


def add(root: Path, where: str, config: str = "format: onnx\n") -> Path:
    folder = root / where
    folder.mkdir(parents=True)
    (folder / "model.yaml").write_text(config)
    return folder


def reasons(found: Scan) -> dict[str, str]:
    return {broken.where: broken.reason for broken in found.broken}


def test_models_are_found_by_name_and_version_with_or_without_an_organisation(tmp_path: Path) -> None:
    for where in ("minilm/2", "minilm/10", "acme/minilm/1"):
        add(tmp_path, where)
    found = scan(tmp_path)
    assert [(m.name, m.version) for m in found.models] == [("acme/minilm", 1), ("minilm", 2), ("minilm", 10)]
    assert found.broken == ()


def test_the_latest_version_is_the_highest_number_not_the_last_in_the_alphabet(tmp_path: Path) -> None:
    add(tmp_path, "minilm/2")
    add(tmp_path, "minilm/10")
    assert scan(tmp_path).latest()["minilm"].version == 10
    assert find_model(tmp_path, "minilm").version == 10


def test_a_broken_model_does_not_hide_the_others(tmp_path: Path) -> None:
    add(tmp_path, "bad/1", "format: onnx\nmax_batch: 4\n")
    add(tmp_path, "good/1")
    found = scan(tmp_path)
    assert [m.name for m in found.models] == ["good"]
    assert list(reasons(found)) == ["bad/1"]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("format: onnx\nmax_batch: 4\n", "max_batch: is not a known key; known are format,"),
        ("format: onnx\nmax_batch_size: 0\n", "max_batch_size: Input should be greater than or equal to 1"),
        ("format: onnx\nmax_batch_size: many\n", "max_batch_size: Input should be a valid integer"),
        ("description: no format\n", "format: Field required"),
        ("format: onnx\npreprocessing: {name: image, sise: 3}\n", "preprocessing.image.sise: is not a known"),
        ("format: onnx\npreprocessing: {name: sound}\n", "preprocessing: Input tag 'sound'"),
        ("format: onnx\npostprocessing: {name: classify}\n", "postprocessing 'classify' needs 'labels'"),
        ("format: onnx\ninputs: [{name: x, dtype: fp32, shape: [-1]}]\n", "inputs.0.dtype: must be one of"),
        ("format: [\n", "is not valid YAML at line 2"),
        ("format: \x00\n", "is not valid YAML"),
        ("format: !!python/object/apply:os.getcwd []\n", "is not valid YAML at line 1"),
        ("[" * 1000, "is not valid YAML"),
        ("- format\n", "must be a map"),
        ("", "must be a map"),
        ("#" * (MAX_CONFIG_BYTES + 1), f"is larger than {MAX_CONFIG_BYTES} bytes"),
    ],
)
def test_a_wrong_model_yaml_is_named_with_its_key_and_what_was_expected(
    tmp_path: Path, config: str, reason: str
) -> None:
    add(tmp_path, "bad/1", config)
    text = reasons(scan(tmp_path))["bad/1"]
    assert text.startswith("model.yaml: ")
    assert reason in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("version", ["0", "01", "-1", "1.0", "latest", "1 "])
def test_a_version_that_is_not_a_plain_number_is_refused(tmp_path: Path, version: str) -> None:
    add(tmp_path, f"minilm/{version}")
    found = scan(tmp_path)
    assert found.models == ()
    assert "must be in a version folder" in reasons(found)[f"minilm/{version}"]


def test_a_model_without_a_version_folder_is_reported(tmp_path: Path) -> None:
    add(tmp_path, "minilm")
    assert "must be in a version folder" in reasons(scan(tmp_path))["minilm/model.yaml"]


def test_a_version_without_a_model_yaml_is_reported(tmp_path: Path) -> None:
    (tmp_path / "minilm/1").mkdir(parents=True)
    assert reasons(scan(tmp_path)) == {"minilm/1": "file 'model.yaml' is missing"}


def test_a_name_that_is_not_allowed_is_reported(tmp_path: Path) -> None:
    add(tmp_path, "mini lm/1")
    assert "the model's name must be letters" in reasons(scan(tmp_path))["mini lm/1"]


def test_folders_that_start_with_a_dot_and_stray_files_are_passed_over(tmp_path: Path) -> None:
    add(tmp_path, "minilm/.publishing-x")
    add(tmp_path, ".hidden/1")
    (tmp_path / "README").write_text("hello")
    assert scan(tmp_path) == Scan((), ())


def test_links_are_refused_wherever_they_are(tmp_path: Path) -> None:
    outside = add(tmp_path, "outside/1")
    root = tmp_path / "root"
    add(root, "file/1")
    (root / "file/1/weights").symlink_to(outside / "model.yaml")
    add(root, "hard/1")
    os.link(outside / "model.yaml", root / "hard/1/weights")
    add(root, "pipe/1")
    os.mkfifo(root / "pipe/1/weights")
    (root / "model").symlink_to(tmp_path / "outside")
    (root / "version").mkdir()
    (root / "version/1").symlink_to(outside)
    found = scan(root)
    assert found.models == ()
    assert sorted(reasons(found)) == ["file/1", "hard/1", "model/1", "pipe/1", "version/1"]


def test_a_folder_that_can_not_be_read_hides_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tmp_path, "good/1")
    add(tmp_path, "secret/1")
    (tmp_path / "lost+found").mkdir()
    listed, opened = Path.iterdir, Path.read_bytes

    def iterdir(path: Path) -> Iterator[Path]:
        if path.name == "lost+found":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    def read_bytes(path: Path) -> bytes:
        if "secret" in path.parts:
            raise PermissionError(13, "Permission denied")
        return opened(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    found = scan(tmp_path)
    assert [m.name for m in found.models] == ["good"]
    assert reasons(found) == {"secret/1": "can not be read: Permission denied"}


def test_a_repository_that_is_no_folder_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="not a folder"):
        scan(tmp_path / "nowhere")


def test_a_model_that_is_not_there_is_unknown_and_so_is_a_version(tmp_path: Path) -> None:
    add(tmp_path, "minilm/1")
    with pytest.raises(UnknownModel, match="model 'bert' is not in the repository"):
        find_model(tmp_path, "bert")
    with pytest.raises(UnknownModel, match="version 2 of model 'minilm'"):
        find_model(tmp_path, "minilm", 2)


def test_a_model_can_not_be_asked_for_by_a_path(tmp_path: Path) -> None:
    add(tmp_path, "minilm/1")
    with pytest.raises(InvalidInput):
        find_model(tmp_path / "minilm", "../minilm")
