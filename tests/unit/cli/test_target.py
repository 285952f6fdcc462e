"""Which gateway a command finds, and which key it sends there."""

from pathlib import Path

import pytest

from scripts.cli.exits import Exit, Stop
from scripts.cli.target import Target, find_target
from scripts.stack.folder import DataFolder, Endpoints


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path)
    folder.secrets_file.write_text("API_KEY=of-the-folder\n")
    folder.announce(Endpoints("http://127.0.0.1:1", "nats://n", "redis://r", "http://m", "/models", 1))
    return folder


def test_the_command_line_wins(folder: DataFolder) -> None:
    environment = {"MODEL_SERVING_URL": "http://env", "MODEL_SERVING_API_KEY": "env"}
    assert find_target("http://arg/", "arg", folder.path, environment=environment) == Target(
        "http://arg", "arg"
    )


def test_the_environment_comes_next(folder: DataFolder) -> None:
    environment = {"MODEL_SERVING_URL": "http://env", "MODEL_SERVING_API_KEY": "env"}
    assert find_target(None, None, folder.path, environment=environment) == Target("http://env", "env")


def test_the_data_folder_comes_last(folder: DataFolder) -> None:
    assert find_target(None, None, folder.path, environment={}) == Target(
        "http://127.0.0.1:1", "of-the-folder"
    )


def test_the_key_of_the_folder_goes_to_no_other_gateway(folder: DataFolder) -> None:
    assert find_target("http://elsewhere", None, folder.path, environment={}).api_key is None


def test_a_folder_where_nothing_runs_is_no_target(tmp_path: Path) -> None:
    with pytest.raises(Stop) as stop:
        find_target(None, None, tmp_path, environment={})
    assert stop.value.code is Exit.NO_CONNECTION


def test_a_broken_folder_is_named(folder: DataFolder) -> None:
    (folder.path / "endpoints.json").write_text("{")
    with pytest.raises(Stop, match=r"endpoints\.json") as stop:
        find_target(None, None, folder.path, environment={})
    assert stop.value.code is Exit.REFUSED
