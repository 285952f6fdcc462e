"""The commands that become a service, against real servers, from a folder with a misleading name in it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import NatsServer, ValkeyServer, free_port

pytestmark = pytest.mark.integration

MODULES = {"gateway": "gateway", "worker": "workers", "scheduler": "scheduler"}


def run(folder: Path, arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    code = "from scripts.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "API_KEYS": "a-key-for-this-test", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def servers(nats: NatsServer, valkey: ValkeyServer, role: str) -> dict[str, str]:
    address = f"nats://127.0.0.1:{nats.port}"
    return {
        "NATS_URL": address,
        "NATS_USER": role,
        "NATS_PASSWORD": nats.passwords[role],
        "REDIS_URL": valkey.url,
    }


@pytest.mark.parametrize("role", MODULES)
def test_a_service_checks_its_connections_wherever_the_user_stands(
    nats_server: NatsServer, valkey_server: ValkeyServer, tmp_path: Path, role: str
) -> None:
    decoy = tmp_path / MODULES[role]
    decoy.mkdir()
    (decoy / "__init__.py").write_text("raise SystemExit('this is not our package')\n")
    done = run(tmp_path, [role, "--check"], **servers(nats_server, valkey_server, role))
    assert done.returncode == 0, done.stderr
    assert "nats: ok" in done.stdout
    assert "redis: ok" in done.stdout


def test_check_shows_settings_without_their_secrets(
    nats_server: NatsServer, valkey_server: ValkeyServer, tmp_path: Path
) -> None:
    done = run(tmp_path, ["check"], **servers(nats_server, valkey_server, "monitor"))
    assert done.returncode == 0, done.stderr
    assert f"NATS_URL=nats://127.0.0.1:{nats_server.port}" in done.stdout
    assert nats_server.passwords["monitor"] not in done.stdout
    assert valkey_server.password not in done.stdout


def test_check_fails_where_nobody_answers(
    nats_server: NatsServer, valkey_server: ValkeyServer, tmp_path: Path
) -> None:
    settings = {
        **servers(nats_server, valkey_server, "monitor"),
        "REDIS_URL": f"redis://127.0.0.1:{free_port()}",
    }
    done = run(tmp_path, ["check"], **settings)
    assert (done.returncode, "nats: ok" in done.stdout, "redis: failed" in done.stdout) == (1, True, True)


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    done = run(tmp_path, ["check"], NATS_ACK_TIMEOUT_S="soon")
    assert done.returncode == 1
    assert "ack_timeout_s" in done.stderr
