"""API keys: how they are written in the settings, and who a caller turns out to be."""

import hashlib
from contextlib import nullcontext
from functools import partial

import pytest

from gateway.auth import check_route, parse_keys
from schemas.errors import Forbidden, InferenceError, Unauthorized

ACME, UMBRELLA = "acme-key-0123456789", "umbrella-key-0123456789"


def test_a_key_names_its_tenant() -> None:
    keys = parse_keys(f"acme:{ACME}, umbrella:{UMBRELLA}")
    assert keys.tenant_of([f"Bearer {ACME}"]) == "acme"
    assert keys.tenant_of([f"Bearer {UMBRELLA}"]) == "umbrella"


def test_a_tenant_may_have_several_keys() -> None:
    keys = parse_keys(f"acme:{ACME},acme:{UMBRELLA}")
    assert {keys.tenant_of([f"Bearer {key}"]) for key in (ACME, UMBRELLA)} == {"acme"}


def test_a_bare_key_belongs_to_the_default_tenant() -> None:
    assert parse_keys(ACME).tenant_of([f"Bearer {ACME}"]) == "public"


def test_a_hash_may_stand_for_a_key() -> None:
    digest = hashlib.sha256(ACME.encode()).hexdigest()
    assert parse_keys(f"acme:sha256={digest}").tenant_of([f"Bearer {ACME}"]) == "acme"
    assert parse_keys(f"sha256={digest.upper()}").tenant_of([f"Bearer {ACME}"]) == "public"


def test_the_scheme_may_be_written_in_any_case() -> None:
    assert parse_keys(ACME).tenant_of([f"bearer  {ACME}"]) == "public"


@pytest.mark.parametrize(
    "authorization",
    [
        [],
        [""],
        ["Bearer"],
        ["Bearer "],
        [ACME],
        [f"Basic {ACME}"],
        ["Bearer wrong-key-0123456789"],
        [f"Bearer {ACME}x"],
        [f"Bearer {ACME[:-1]}"],
        ["Bearer " + "x" * 10_000],
        ["Bearer k\xffy-0123456789abcdef"],
        [f"Bearer {ACME}", f"Bearer {ACME}"],
    ],
)
def test_anything_else_is_unauthorized(authorization: list[str]) -> None:
    with pytest.raises(Unauthorized):
        parse_keys(f"acme:{ACME}").tenant_of(authorization)


@pytest.mark.parametrize("text", ["acme:short", "sha256=abc", "Bad_Tenant:" + ACME, "acme:" + "x" * 513])
def test_a_bad_entry_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="entry 1") as refused:
        parse_keys(text)
    assert text.rpartition(":")[2] not in str(refused.value)


@pytest.mark.parametrize(
    ("is_admin", "admins", "callers", "refused"),
    [
        (True, True, True, None),
        (True, True, False, None),
        (False, True, True, Forbidden),
        (False, False, True, Forbidden),
        (False, False, False, Forbidden),
        (False, True, False, Unauthorized),  # nobody was asked for a key yet
    ],
)
def test_an_admin_route_is_for_admins(
    is_admin: bool, admins: bool, callers: bool, refused: type[InferenceError] | None
) -> None:
    check = partial(
        check_route,
        is_admin=is_admin,
        admins=parse_keys(ACME) if admins else None,
        callers=parse_keys(UMBRELLA) if callers else None,
    )
    with nullcontext() if refused is None else pytest.raises(refused):
        check(admins_only=True)


def test_an_admin_key_opens_nothing_else() -> None:
    check_route(admins_only=False, is_admin=False, admins=None, callers=None)
    with pytest.raises(Forbidden, match="admins only"):
        check_route(admins_only=False, is_admin=True, admins=parse_keys(ACME), callers=None)


def test_a_key_of_both_kinds_is_noticed_however_it_is_written() -> None:
    hashed = f"sha256={hashlib.sha256(ACME.encode()).hexdigest()}"
    assert parse_keys(f"root:{ACME}").shares_a_key_with(parse_keys(f"acme:{hashed},x:{UMBRELLA}"))
    assert not parse_keys(f"acme:{ACME}").shares_a_key_with(parse_keys(f"acme:{UMBRELLA}"))
