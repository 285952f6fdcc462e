"""What the data folder holds, and who may use it."""

import stat
from pathlib import Path

import pytest

from scripts.stack.folder import BadFolder, DataFolder, Endpoints, FolderInUse, api_keys

ENDPOINTS = Endpoints(
    gateway="http://127.0.0.1:1",
    nats="nats://127.0.0.1:2",
    redis="redis://127.0.0.1:3/0",
    nats_monitoring="http://127.0.0.1:4",
    models="/models",
    pid=5,
)


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path)


def test_secrets_are_made_once_and_for_their_owner_only(folder: DataFolder) -> None:
    secrets = folder.secrets()
    assert DataFolder(folder.path).secrets() == secrets
    assert len(set(secrets.values())) == len(secrets) == 10
    assert stat.S_IMODE(folder.secrets_file.stat().st_mode) == 0o600


def test_a_secret_that_the_user_wrote_stays(folder: DataFolder) -> None:
    folder.secrets_file.write_text("# mine\nAPI_KEY=chosen=by-hand\n")
    assert folder.secrets()["API_KEY"] == "chosen=by-hand"
    assert api_keys(folder.read_secrets()) == "public:chosen=by-hand"


def test_a_broken_secrets_file_is_named(folder: DataFolder) -> None:
    folder.secrets_file.write_text("nonsense\n")
    with pytest.raises(BadFolder, match="NAME=value"):
        folder.secrets()


def test_a_folder_has_one_owner(folder: DataFolder) -> None:
    with folder.owned(), pytest.raises(FolderInUse, match="in use"), DataFolder(folder.path).owned():
        pass
    with DataFolder(folder.path).owned():
        pass


def test_endpoints_are_found_until_they_are_withdrawn(folder: DataFolder) -> None:
    folder.announce(ENDPOINTS)
    assert DataFolder(folder.path).endpoints() == ENDPOINTS
    folder.withdraw()
    folder.withdraw()
    assert folder.endpoints() is None


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"gateway": 1, "more": 2}'])
def test_broken_endpoints_are_named(folder: DataFolder, text: str) -> None:
    (folder.path / "endpoints.json").write_text(text)
    with pytest.raises(BadFolder, match=r"endpoints\.json"):
        folder.endpoints()
