"""What `model-serving env` prints, and that a shell reads it back."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.stack.folder import DataFolder, Endpoints

ENDPOINTS = Endpoints(
    gateway="http://127.0.0.1:1",
    nats="nats://127.0.0.1:2",
    redis="redis://127.0.0.1:3/0",
    nats_monitoring="http://127.0.0.1:4",
    models="/my models",
    pid=5,
)


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path)
    folder.secrets()
    folder.announce(ENDPOINTS)
    return folder


def in_a_shell(folder: DataFolder, arguments: str, *variables: str) -> list[str]:
    """Source the output in bash and return the values of `variables`."""
    values = " ".join(f'"${name}"' for name in variables)
    command = f"source <({sys.executable} -c 'from scripts.cli import main; main()' env {arguments}) &&"
    script = f"{command} printf '%s\\n' {values}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, env={"PATH": "/bin"}
    )
    return done.stdout.splitlines()


def test_a_client_of_http_gets_address_and_key(folder: DataFolder) -> None:
    found = in_a_shell(folder, f"--data {folder.path}", "MODEL_SERVING_URL", "MODEL_SERVING_API_KEY")
    assert found == [ENDPOINTS.gateway, folder.read_secrets()["API_KEY"]]


def test_a_publisher_gets_its_password_and_no_other(folder: DataFolder) -> None:
    names = ("NATS_URL", "NATS_USER", "NATS_PASSWORD", "REDIS_URL")
    found = in_a_shell(folder, f"--role publisher --data {folder.path}", *names)
    assert found == [ENDPOINTS.nats, "publisher", folder.read_secrets()["NATS_PUBLISHER_PASSWORD"], ""]


def test_a_service_gets_all_that_one_more_of_it_needs(folder: DataFolder) -> None:
    names = ("REDIS_URL", "MODEL_REPOSITORY", "BLOB_STORE")
    found = in_a_shell(folder, f"--role worker --data {folder.path}", *names)
    password = folder.read_secrets()["VALKEY_PASSWORD"]
    assert found == [f"redis://:{password}@127.0.0.1:3/0", "/my models", f"file://{folder.blobs}"]
