"""Which URLs may be called, and that the connection goes where the check looked."""

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from infra.connections.callbacks import (
    MAX_ANSWER_BYTES,
    CallFailed,
    Resolve,
    is_public,
    open_callbacks,
)
from schemas.errors import InvalidInput

PUBLIC = "93.184.215.14"


def resolving(*addresses: str) -> Resolve:
    """Resolve every name to these."""
    return lambda _host, _port: addresses


async def check(url: str, resolve: Resolve | None = None, *, allow_private: bool = False) -> None:
    """Check one URL; without `resolve` as this machine resolves it."""
    async with open_callbacks(allow_private=allow_private, timeout_s=5, resolve=resolve) as callbacks:
        await callbacks.check(url, field="webhook.url")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",  # noqa: S104 - an address to refuse
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.0.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fc00::1",
        "fd12::1",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
        "2001:db8::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:10.0.0.1",
        "::ffff:100.64.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::7f00:1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
    ],
)
async def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    with pytest.raises(InvalidInput, match="public internet") as refused:
        await check("https://hooks.example/x", resolving(address))
    assert refused.value.field == "webhook.url"


@pytest.mark.parametrize("address", [PUBLIC, "2606:4700::1111", "::ffff:93.184.215.14", "64:ff9b::5db8:d70e"])
async def test_a_public_address_is_allowed(address: str) -> None:
    await check("https://hooks.example:8443/x?y=z", resolving(address))


async def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    with pytest.raises(InvalidInput, match="public internet"):
        await check("https://hooks.example/x", resolving(PUBLIC, "10.0.0.1"))


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "127.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0",
        "localhost",
    ],
)
async def test_no_way_of_writing_this_machine_gets_past(host: str) -> None:
    with pytest.raises(InvalidInput):
        await check(f"http://{host}/")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks.example/x",
        "//hooks.example/x",
        "ftp://hooks.example/x",
        "file:///etc/passwd",
        "gopher://hooks.example/x",
        "https://",
        "https:///x",
        "https://user@hooks.example/",
        "https://user:pass@hooks.example/",
        "https://hooks.example\\@10.0.0.1/",
        "https://hooks.example /x",
        "https://hooks.example/\r\nx: y",
        "https://hooks.example/\u2028",
        "https://hooks.example:99999/",
        "https://hooks.example/" + "x" * 2048,
    ],
)
async def test_what_is_no_plain_web_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        await check(url, resolving(PUBLIC))
    assert refused.value.field == "webhook.url"


async def test_a_private_address_is_allowed_where_the_operator_says_so() -> None:
    await check("http://10.0.0.1/x", resolving("10.0.0.1"), allow_private=True)


class Receiver:
    """An HTTP server that answers each request with the next of `answers`, and keeps what it read."""

    def __init__(self, *answers: bytes) -> None:
        self.requests: list[bytes] = []
        self.written = 0
        self.talks: list[asyncio.Task[None]] = []
        self._answers = list(answers)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.talks.append(task)
        try:
            await self.talk(reader, writer)
            await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read one request and answer it."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        self.requests.append(head + await reader.readexactly(length))
        for part in self._answers.pop(0).split(b"|"):
            writer.write(part)
            await writer.drain()
            self.written += len(part)
        await reader.read()


async def posted(
    receiver: Receiver, resolve: Resolve, *, allow_private: bool = True, timeout_s: float = 5
) -> int:
    """Post to `hooks.example`, whatever that resolves to, at the port of the receiver."""
    server = await asyncio.start_server(receiver, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with (
        server,
        open_callbacks(allow_private=allow_private, timeout_s=timeout_s, resolve=resolve) as callbacks,
    ):
        try:
            return await callbacks.post(f"http://hooks.example:{port}/x?y=z", b"{}", {"webhook-id": "e"})
        finally:
            await asyncio.gather(*receiver.talks)


async def test_the_connection_is_made_to_the_checked_address_under_the_name() -> None:
    receiver = Receiver(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert await posted(receiver, resolving("127.0.0.1")) == 204
    head = receiver.requests[0]
    assert head.startswith(b"POST /x?y=z HTTP/1.1\r\n")
    assert b"host: hooks.example:" in head.lower()


async def test_a_name_is_resolved_once_so_a_second_answer_can_not_lead_inside() -> None:
    asked: list[str] = []

    def rebinding(host: str, _: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    receiver = Receiver(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    assert await posted(receiver, rebinding) == 200
    assert asked == ["hooks.example"]


async def test_a_name_that_leads_inside_later_is_refused_when_it_is_called() -> None:
    receiver = Receiver(b"HTTP/1.1 200 OK\r\n\r\n")
    with pytest.raises(CallFailed, match="public internet"):
        await posted(receiver, resolving("127.0.0.1"), allow_private=False)
    assert receiver.requests == []


async def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    receiver = Receiver(
        b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/secret\r\ncontent-length: 0\r\n\r\n"
    )
    assert await posted(receiver, resolving("127.0.0.1")) == 302
    assert len(receiver.requests) == 1


async def test_little_is_read_of_a_long_answer() -> None:
    endless = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n|" + b"|".join([b"x" * (1 << 20)] * 64)
    receiver = Receiver(endless)
    assert await posted(receiver, resolving("127.0.0.1")) == 200
    assert receiver.written < 32 << 20  # what the kernel's buffers take, and MAX_ANSWER_BYTES
    assert MAX_ANSWER_BYTES < 1 << 20


async def test_a_receiver_that_says_nothing_is_given_up_after_a_while() -> None:
    class Silent(Receiver):
        async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()

    with pytest.raises(CallFailed, match="no answer"):
        await posted(Silent(), resolving("127.0.0.1"), timeout_s=0.1)


async def test_the_status_counts_even_if_the_rest_never_comes() -> None:
    class Trickling(Receiver):
        async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nx")
            await writer.drain()
            await reader.read()

    assert await posted(Trickling(), resolving("127.0.0.1"), timeout_s=0.2) == 200


async def test_the_next_address_is_tried_where_nobody_listens_at_the_first() -> None:
    receiver = Receiver(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    assert await posted(receiver, resolving("127.0.0.9", "127.0.0.1")) == 200
    with pytest.raises(CallFailed, match="no connection"):
        await posted(receiver, resolving("127.0.0.9"))


def a_certificate(folder: Path, name: str) -> Path:
    """Write a key and a certificate that proves `name` and nothing else, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = folder / "receiver.pem"
    file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return file


async def test_the_certificate_must_prove_the_name_not_the_address(tmp_path: Path) -> None:
    file = a_certificate(tmp_path, "hooks.example")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)
    receiver = Receiver(b"HTTP/1.1 204 No Content\r\n\r\n")
    server = await asyncio.start_server(receiver, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    async with (
        server,
        open_callbacks(
            allow_private=True, timeout_s=5, ca_file=file, resolve=resolving("127.0.0.1")
        ) as callbacks,
    ):
        assert await callbacks.post(f"https://hooks.example:{port}/", b"{}", {}) == 204
        with pytest.raises(CallFailed):
            await callbacks.post(f"https://other.example:{port}/", b"{}", {})
        await asyncio.gather(*receiver.talks)
