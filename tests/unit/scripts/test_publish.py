"""A model appears in a repository whole, or not at all."""

from pathlib import Path

import pytest

from scripts.models.content_type import install_content_type_model
from scripts.models.identity import install_identity_model
from scripts.models.publish import publishing


def write(repository: Path, text: str, *, version: int = 1) -> None:
    with publishing(repository, "org/model", version) as folder:
        (folder / "file").write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_model_appears_under_its_name_and_version_and_leaves_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, "one", version=3)
    assert names(tmp_path / "org/model") == ["3"]
    assert (tmp_path / "org/model/3/file").read_text() == "one"


def test_until_it_is_whole_it_lies_where_no_worker_looks(tmp_path: Path) -> None:
    with publishing(tmp_path, "model") as folder:
        hidden = [part for part in folder.relative_to(tmp_path).parts if part.startswith(".")]
        assert hidden
        assert not (tmp_path / "model/1").exists()


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    write(tmp_path, "one")
    with pytest.raises(FileNotFoundError), publishing(tmp_path, "org/model") as folder:
        (folder / "file").write_bytes((tmp_path / "not-there").read_bytes())
    assert (tmp_path / "org/model/1/file").read_text() == "one"
    assert names(tmp_path / "org/model") == ["1"]


def test_other_content_replaces_what_was_there_and_the_same_content_leaves_it(tmp_path: Path) -> None:
    write(tmp_path, "one")
    before = (tmp_path / "org/model/1").stat().st_ino
    write(tmp_path, "one")
    assert (tmp_path / "org/model/1").stat().st_ino == before
    write(tmp_path, "two")
    assert (tmp_path / "org/model/1/file").read_text() == "two"
    assert names(tmp_path / "org/model") == ["1"]


def test_the_models_that_come_with_us_install_once_however_often_asked(tmp_path: Path) -> None:
    for install in (install_content_type_model, install_identity_model):
        folder = install(tmp_path)
        before = folder.stat().st_ino
        assert install(tmp_path) == folder
        assert folder.stat().st_ino == before
        assert "model.onnx" in names(folder)
