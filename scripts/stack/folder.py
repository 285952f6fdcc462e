"""The data folder of `up`: who owns it, its passwords, and where its servers listen.

lock            held while `up` runs
secrets.env     passwords, API keys and the signing key, created once, readable by its owner only
endpoints.json  addresses, there while `up` runs
nats/ valkey/ blobs/ models/
"""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from schemas.headers import DEFAULT_TENANT
from scripts.stack.servers import NATS_PASSWORDS

DEFAULT_DATA = Path(".model-serving")
API_KEY = "API_KEY"
ADMIN_API_KEY = "ADMIN_API_KEY"
VALKEY_PASSWORD = "VALKEY_PASSWORD"  # noqa: S105 - the name of a variable
SIGNING_KEY = "TENANT_SIGNING_KEY"
_SECRETS = (
    *(f"NATS_{who.upper()}_PASSWORD" for who in NATS_PASSWORDS),
    VALKEY_PASSWORD,
    API_KEY,
    ADMIN_API_KEY,
    SIGNING_KEY,
)


class FolderInUse(Exception):
    """Another `up` owns the data folder; the message says which process."""


class BadFolder(Exception):
    """A file in the data folder is not what `up` wrote."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the parts of a running `up` are. Without passwords; those are in secrets.env."""

    gateway: str
    nats: str
    redis: str
    nats_monitoring: str
    models: str  # the repository, a folder
    pid: int


class DataFolder:
    """Paths and files below one folder. Only `owned` and `secrets` create anything."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.nats = self.path / "nats"
        self.valkey = self.path / "valkey"
        self.blobs = self.path / "blobs"
        self.models = self.path / "models"
        self.secrets_file = self.path / "secrets.env"
        self._endpoints_file = self.path / "endpoints.json"

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Own the folder until the end of the block or of this process. Raises FolderInUse."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                lock.seek(0)
                owner = lock.read().strip() or "unknown"
                raise FolderInUse(
                    f"{self.path} is in use by another 'model-serving up' (process {owner})"
                ) from error
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            yield

    def secrets(self) -> dict[str, str]:
        """Read the secrets, making those that do not exist yet. Only the folder's owner may call this."""
        known = self.read_secrets()
        made = {name: f"ms-{secrets.token_urlsafe(24)}" for name in _SECRETS if name not in known}
        if made:
            lines = "".join(f"{name}={value}\n" for name, value in {**known, **made}.items())
            _write_whole(self.secrets_file, lines, mode=0o600)
        return {**known, **made}

    def read_secrets(self) -> dict[str, str]:
        """Read the secrets that exist. Raises BadFolder if the file is not lines of NAME=value."""
        try:
            lines = self.secrets_file.read_text().splitlines()
        except FileNotFoundError:
            return {}
        pairs = [line.partition("=") for line in lines if line.strip() and not line.startswith("#")]
        if not all(equals for _, equals, _ in pairs):
            raise BadFolder(f"{self.secrets_file} must hold lines of NAME=value")
        return {name: value for name, _, value in pairs}

    def announce(self, endpoints: Endpoints) -> None:
        """Let other commands find the servers."""
        _write_whole(self._endpoints_file, json.dumps(asdict(endpoints), indent=2) + "\n", mode=0o644)

    def withdraw(self) -> None:
        """Take back what `announce` wrote, or what an `up` that was killed has left."""
        with suppress(FileNotFoundError):
            self._endpoints_file.unlink()

    def endpoints(self) -> Endpoints | None:
        """Read where the servers listen; None if no `up` runs here. Raises BadFolder if it is unreadable."""
        try:
            raw = json.loads(self._endpoints_file.read_text())
            return Endpoints(**raw)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise BadFolder(f"{self._endpoints_file} is not what 'model-serving up' writes") from error


def api_keys(secrets_: Mapping[str, str]) -> str:
    """Format the gateway's API_KEYS: one key, of the tenant that direct publishers belong to as well."""
    return f"{DEFAULT_TENANT}:{secrets_[API_KEY]}"


def admin_api_keys(secrets_: Mapping[str, str]) -> str:
    """Format the gateway's ADMIN_API_KEYS: one key, of whoever owns the folder."""
    return f"admin:{secrets_[ADMIN_API_KEY]}"


def _write_whole(path: Path, text: str, *, mode: int) -> None:
    """Write a file so that nobody ever sees a part of it, or sees it with wider permissions."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with open(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
