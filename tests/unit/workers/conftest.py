"""Fixtures for tests of the worker's parts."""

from pathlib import Path

import pytest

from scripts.models.content_type import install_content_type_model
from tests.models import install_test_models


@pytest.fixture(scope="session")
def test_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of `identity`, `div`, `loop`, `expand` and `content-type`. Read it only."""
    repository = install_test_models(tmp_path_factory.mktemp("models"))
    install_content_type_model(repository)
    return repository
