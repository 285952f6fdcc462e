"""TLS and nkeys towards the broker, by settings alone."""

import asyncio
import datetime
import ipaddress
import os
from collections.abc import Iterator
from pathlib import Path

import nkeys
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from infra.connections.clients import Role, open_nats
from infra.connections.requests import Requests
from infra.connections.settings import NatsSettings
from tests.servers import NatsServer

pytestmark = pytest.mark.integration

CONFIG = Path(__file__).parents[2] / "infra" / "nats" / "nats-server-tls.conf"

Issued = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def issue(name: str, *, by: Issued | None = None) -> Issued:
    """Make a certificate for loopback; its own authority if `by` is None."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by[0].subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
    )
    return builder.sign(by[1] if by else key, hashes.SHA256()), key


def write(folder: Path, name: str, issued: Issued) -> tuple[Path, Path]:
    """Write a certificate and its key as PEM."""
    certificate, key = issued
    cert_file, key_file = folder / f"{name}.crt", folder / f"{name}.key"
    cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return cert_file, key_file


class TlsServer(NatsServer):
    """The shipped server with the shipped TLS settings."""

    def __init__(self, folder: Path, files: dict[str, Path]) -> None:
        super().__init__(folder)
        self._files = files

    def command(self) -> list[str]:
        program, *_ = super().command()
        return [program, "--config", str(CONFIG)]

    def environment(self) -> dict[str, str]:
        return super().environment() | {name: f'"{path}"' for name, path in self._files.items()}


@pytest.fixture
def authority() -> Issued:
    return issue("authority")


@pytest.fixture
def server(tmp_path: Path, authority: Issued) -> Iterator[TlsServer]:
    certificate, key = write(tmp_path, "server", issue("server", by=authority))
    ca, _ = write(tmp_path, "ca", authority)
    files = {"NATS_TLS_SERVER_CERT": certificate, "NATS_TLS_SERVER_KEY": key, "NATS_TLS_CA": ca}
    with TlsServer(tmp_path / "nats", files) as running:
        yield running


def with_tls(server: NatsServer, folder: Path, name: str) -> NatsSettings:
    files = {"tls_ca_file": folder / "ca.crt", "tls_cert_file": folder / f"{name}.crt"}
    return server.settings("scheduler").model_copy(update=files | {"tls_key_file": folder / f"{name}.key"})


async def account_info(settings: NatsSettings) -> dict[str, object]:
    async with open_nats(settings, Role.SCHEDULER) as connection:
        requests = Requests(connection, timeout_s=5)
        await requests.open()
        return await requests.api("INFO")


async def test_a_certificate_of_our_authority_is_let_in(
    server: TlsServer, tmp_path: Path, authority: Issued
) -> None:
    write(tmp_path, "client", issue("client", by=authority))
    assert "limits" in await account_info(with_tls(server, tmp_path, "client"))


async def test_a_server_of_another_authority_is_not_trusted(server: TlsServer, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    stranger = issue("stranger")
    write(other, "ca", stranger)
    write(other, "client", issue("client", by=stranger))
    with pytest.raises((OSError, TimeoutError)):
        async with asyncio.timeout(3):
            await account_info(with_tls(server, other, "client"))


class NkeyServer(NatsServer):
    """A server that knows its users by their keys."""

    def __init__(self, folder: Path, public_key: str) -> None:
        super().__init__(folder)
        self._public_key = public_key

    def command(self) -> list[str]:
        program, *_ = super().command()
        config = self.folder / "nkey.conf"
        config.write_text(
            f"server_name: {self.server_name}\nlisten: 127.0.0.1:{self.port}\n"
            f"http: 127.0.0.1:{self.monitoring_port}\njetstream {{ store_dir: {self.folder}/store }}\n"
            f"accounts {{ INFER {{ jetstream: enabled, users: [ {{ nkey: {self._public_key} }} ] }} }}\n"
        )
        return [program, "--config", str(config)]


async def test_an_nkey_opens_the_door_in_place_of_a_password(tmp_path: Path) -> None:
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    seed_file = tmp_path / "seed"
    seed_file.write_bytes(seed)
    public_key = nkeys.from_seed(bytearray(seed)).public_key.decode()
    with NkeyServer(tmp_path / "nats", public_key) as server:
        url = f"nats://127.0.0.1:{server.port}"
        assert "limits" in await account_info(NatsSettings(url=url, nkey_seed_file=seed_file))
