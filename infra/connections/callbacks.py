"""Call a URL that a stranger chose, without letting it reach what only we can reach.

The URL is parsed once, its name is resolved once, every address must be public, and the connection is made
to the address that was checked; the name goes into Host and SNI alone. Redirects and proxies, which would
take it elsewhere, are not followed or used.
"""

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from schemas.errors import InvalidInput, Unavailable
from schemas.webhooks import MAX_URL_CHARS

MAX_ANSWER_BYTES = 64 << 10
RESOLVE_TIMEOUT_S = 5.0
LOOKUPS = 8  # on threads of their own: a slow name server must hold up nothing else
MAX_ADDRESSES = 3

_URL = re.compile(r"[\x21-\x5b\x5d-\x7e]+")  # no space, no backslash: parsers differ on those
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Sequence[str]]


class CallFailed(Exception):
    """There was no answer. The text says why, for our own log."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where to connect, and under which name."""

    url: httpx.URL  # with an address for its host
    host: str  # for the header
    name: str  # that a certificate must prove


@dataclass(frozen=True, slots=True)
class Target:
    """A URL and the addresses that were checked for it."""

    url: httpx.URL
    addresses: tuple[Address, ...]

    def at(self, address: Address) -> Place:
        """Say how to reach it at one of its addresses."""
        url = self.url.copy_with(host=str(address), fragment=None)
        return Place(url, self.url.netloc.decode(), self.url.raw_host.decode())


class Callbacks:
    """Checks URLs, and posts to them. `resolve` blocks; it runs on a thread."""

    def __init__(
        self, client: httpx.AsyncClient, *, allow_private: bool, timeout_s: float, resolve: Resolve
    ) -> None:
        self._client = client
        self._allow_private = allow_private
        self._timeout_s = timeout_s
        self._resolve = resolve
        self._lookups = ThreadPoolExecutor(LOOKUPS, thread_name_prefix="resolve")

    def close(self) -> None:
        """Wait for no more lookups."""
        self._lookups.shutdown(wait=False, cancel_futures=True)

    async def check(self, url: str, *, field: str) -> Target:
        """Resolve and check a URL. Raises InvalidInput naming `field`, Unavailable without a name server."""
        parsed = parse_url(url, field=field)
        try:
            found = await self._addresses_of(parsed)
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN:
                raise Unavailable("names can not be resolved now", retry_after_s=5) from error
            raise InvalidInput("has a host that does not resolve", field=field) from error
        except (UnicodeError, OSError) as error:
            raise InvalidInput("has a host that does not resolve", field=field) from error
        except TimeoutError as error:
            raise Unavailable("names can not be resolved now", retry_after_s=5) from error
        if not found or not (self._allow_private or all(map(is_public, found))):
            raise InvalidInput("has a host that is not on the public internet", field=field)
        return Target(parsed, found)

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """Check a URL and post to it; return the status. Raises CallFailed."""
        until = asyncio.get_running_loop().time() + self._timeout_s
        try:
            async with asyncio.timeout_at(until):
                target = await self.check(url, field="url")
        except (InvalidInput, Unavailable) as error:
            raise CallFailed(error.message) from error
        except TimeoutError as error:
            raise CallFailed("the name was not resolved in time") from error
        reason = ""
        for address in target.addresses[:MAX_ADDRESSES]:
            try:
                return await self._post_to(target.at(address), body, headers, until=until)
            except httpx.ConnectError:
                reason = "no connection"
        raise CallFailed(reason)

    async def _addresses_of(self, url: httpx.URL) -> tuple[Address, ...]:
        port = url.port or {"http": 80, "https": 443}[url.scheme]
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(RESOLVE_TIMEOUT_S):
            found = await loop.run_in_executor(self._lookups, self._resolve, url.host, port)
        return tuple(ipaddress.ip_address(address.partition("%")[0]) for address in found)

    async def _post_to(self, place: Place, body: bytes, headers: Mapping[str, str], *, until: float) -> int:
        """Return the status, which counts even if the rest of the answer does not come in time."""
        status = 0
        extensions = {"sni_hostname": place.name}
        headers = {**headers, "host": place.host}
        try:
            async with (
                asyncio.timeout_at(until),
                self._client.stream(
                    "POST", place.url, content=body, headers=headers, extensions=extensions
                ) as answer,
            ):
                status = answer.status_code
                await _read_some(answer)
        except httpx.ConnectError:
            raise
        except (httpx.HTTPError, TimeoutError) as error:
            if not status:
                raise CallFailed(f"no answer: {type(error).__name__}") from error
        return status


@asynccontextmanager
async def open_callbacks(
    *,
    allow_private: bool,
    timeout_s: float,
    ca_file: Path | None = None,
    resolve: Resolve | None = None,
) -> AsyncIterator[Callbacks]:
    """Open what calls strangers. `ca_file` is trusted in place of the public authorities."""
    client = httpx.AsyncClient(
        verify=ssl.create_default_context(cafile=ca_file),
        trust_env=False,  # a proxy would resolve the name again
        follow_redirects=False,
        timeout=timeout_s,
        # A connection is kept by its address, and the next name on that address must prove itself anew.
        limits=httpx.Limits(max_keepalive_connections=0),
    )
    async with client:
        callbacks = Callbacks(
            client, allow_private=allow_private, timeout_s=timeout_s, resolve=resolve or addresses_of
        )
        try:
            yield callbacks
        finally:
            callbacks.close()


def parse_url(url: str, *, field: str) -> httpx.URL:
    """Parse an http or https URL without credentials. Raises InvalidInput, which does not repeat it."""
    if len(url) > MAX_URL_CHARS or not _URL.fullmatch(url):
        raise InvalidInput(
            f"must be at most {MAX_URL_CHARS} printable ASCII characters, no backslash", field=field
        )
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidInput("is not a URL", field=field) from error
    if parsed.scheme not in ("http", "https"):
        raise InvalidInput("must begin with https:// or http://", field=field)
    if not parsed.host or not 0 < (parsed.port or 80) < 1 << 16:
        raise InvalidInput("names no host and port that there can be", field=field)
    if parsed.userinfo:
        raise InvalidInput("must not hold a user or password", field=field)
    return parsed


def is_public(address: Address) -> bool:
    """Say whether anybody on the internet could mean this address. One that hides an IPv4 counts as that."""
    if isinstance(address, ipaddress.IPv6Address):
        hidden = _hidden_ipv4(address)
        if hidden is not None:
            return is_public(hidden)
        if address.is_site_local or address.is_reserved:
            return False
    return address.is_global and not address.is_multicast


def addresses_of(host: str, port: int) -> list[str]:
    """Resolve a name, or an address in any form that the system reads. Blocks; raises socket.gaierror."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _hidden_ipv4(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None)


async def _read_some(answer: httpx.Response) -> None:
    """Read what a polite receiver says, and no more than is bearable; nothing depends on it."""
    size = 0
    async for chunk in answer.aiter_raw(8192):
        size += len(chunk)
        if size >= MAX_ANSWER_BYTES:
            return
