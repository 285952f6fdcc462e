"""Commands run in this process, against a fake gateway over real HTTP."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.cli import main
from tests.unit.cli.fake_gateway import FakeGateway
from tests.unit.cli.running import NUMBER_MODEL, TEXT_MODEL, Command, Ended


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    fake = FakeGateway()
    fake.answer("GET", "/v1/models", {"models": [TEXT_MODEL, NUMBER_MODEL]})
    yield fake
    fake.close()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs `model-serving` in an empty folder with no gateway in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("MODEL_SERVING_URL", "MODEL_SERVING_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> Ended:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        code = ended.value.code
        written = capsys.readouterr()
        return Ended(code if isinstance(code, int) else 0, written.out, written.err)

    return run


@pytest.fixture
def ask(command: Command, gateway: FakeGateway) -> Command:
    """Runs a command against the fake gateway."""

    def run(*arguments: str) -> Ended:
        return command(*arguments, "--url", gateway.url, "--api-key", "secret-key")

    return run
