"""API keys: who a caller is. Keys are held and compared as sha256, every one of them, in equal time."""

import hashlib
import hmac
import re
from collections.abc import Sequence

from schemas.errors import Forbidden, InvalidInput, Unauthorized
from schemas.headers import DEFAULT_TENANT
from schemas.subjects import check_tenant

MIN_KEY_CHARS = 16
MAX_KEY_CHARS = 512
_HASHED = re.compile(r"sha256=([0-9a-fA-F]{64})")


ADMINS_ONLY = {"admins_only": True}  # the `opt` of a route; every other route is for callers only


class Keys:
    """The keys of this service. Several may belong to one tenant."""

    def __init__(self, digests: Sequence[tuple[bytes, str]]) -> None:
        self._digests = tuple(digests)

    @property
    def tenants(self) -> frozenset[str]:
        """Whose keys these are."""
        return frozenset(tenant for _, tenant in self._digests)

    def tenant_of(self, authorization: Sequence[str]) -> str:
        """Name the tenant whose key the `Authorization` header holds. Raises Unauthorized."""
        found = self.owner_of(authorization)
        if found is None:
            raise Unauthorized("this API key is not known")
        return found

    def owner_of(self, authorization: Sequence[str]) -> str | None:
        """Do the same, with None for a key that is none of these. Raises Unauthorized if there is no key."""
        digest, found = _digest_of(authorization), None
        for known, owner in self._digests:  # all of them, so that time tells nothing
            if hmac.compare_digest(known, digest):
                found = owner
        return found

    def shares_a_key_with(self, other: "Keys") -> bool:
        """Say whether one key would mean two things."""
        return not {digest for digest, _ in self._digests}.isdisjoint(digest for digest, _ in other._digests)


def parse_keys(text: str) -> Keys:
    """Read `tenant:key,tenant2:key2`; a bare key belongs to the default tenant.

    `sha256=<hex>` in place of a key is its hash. Raises ValueError, which does not repeat a key.
    """
    entries = [entry.strip() for entry in text.split(",")]
    return Keys([_parse_key(entry, number) for number, entry in enumerate(entries, start=1) if entry])


def check_route(*, admins_only: bool, is_admin: bool, admins: Keys | None, callers: Keys | None) -> None:
    """Let admins in where only they belong, and everybody else in elsewhere.

    Raises Forbidden or, to somebody who showed no key because none is needed elsewhere, Unauthorized.
    """
    if is_admin and not admins_only:
        raise Forbidden("an admin API key opens the routes of admins only; use a caller's key")
    if not admins_only or is_admin:
        return
    if admins is None:
        raise Forbidden("this is for admins, and there are none: ADMIN_API_KEYS is not set")
    if callers is None:
        raise Unauthorized("an admin API key is needed: Authorization: Bearer <key>")
    raise Forbidden("this is for admins: one of ADMIN_API_KEYS is needed")


def _digest_of(authorization: Sequence[str]) -> bytes:
    if not authorization:
        raise Unauthorized("an API key is needed: Authorization: Bearer <key>")
    scheme, _, key = authorization[0].partition(" ")
    key = key.strip()
    if len(authorization) > 1 or scheme.lower() != "bearer" or not 0 < len(key) <= MAX_KEY_CHARS:
        raise Unauthorized("the Authorization header must be one 'Bearer <key>'")
    return hashlib.sha256(key.encode()).digest()


def _parse_key(entry: str, number: int) -> tuple[bytes, str]:
    tenant, colon, key = entry.partition(":")
    if not colon:
        tenant, key = DEFAULT_TENANT, entry
    try:
        check_tenant(tenant)
    except InvalidInput as error:
        raise ValueError(f"entry {number}: the tenant's name {error.message}") from error
    if hashed := _HASHED.fullmatch(key):
        return bytes.fromhex(hashed[1]), tenant
    if not MIN_KEY_CHARS <= len(key) <= MAX_KEY_CHARS:
        raise ValueError(f"entry {number}: a key must have {MIN_KEY_CHARS} to {MAX_KEY_CHARS} characters")
    return hashlib.sha256(key.encode()).digest(), tenant
