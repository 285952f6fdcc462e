"""The whole embedded stack, started as a user starts it, once for all end-to-end tests."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.stack import Stack, running_stack
from scripts.models.content_type import install_content_type_model
from scripts.models.identity import install_identity_model
from tests.servers import missing


def example_models() -> Path | None:
    """Where `scripts/examples` has exported to: EXAMPLE_MODELS, or its own default."""
    folder = Path(os.environ.get("EXAMPLE_MODELS", ".model-serving/models"))
    return folder if (folder / "efficientnet-lite0").is_dir() else None


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository: content-type, identity, and the exported examples where there are any."""
    folder = tmp_path_factory.mktemp("repository") / "models"
    folder.mkdir()
    install_content_type_model(folder)
    install_identity_model(folder)
    if (examples := example_models()) is not None:
        shutil.copytree(examples, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Stack]:
    """The running stack."""
    with running_stack(tmp_path_factory.mktemp("up") / "data", repository) as running:
        yield running


@pytest.fixture
def http(stack: Stack) -> Iterator[httpx.Client]:
    """A client of the stack's gateway, with its key."""
    with httpx.Client(base_url=stack.url, headers=stack.auth, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def samples() -> Path:
    """The sample photos that `scripts/examples` lays beside its models."""
    models = example_models()
    if models is None:
        missing("the example models are not there: run scripts/examples")
    return models.parent / "samples"
