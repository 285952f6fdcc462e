"""Only a gateway can make a request for a tenant; a publisher's forgery is malformed."""

from dataclasses import replace

import pytest
from pydantic import SecretStr

from infra.connections.tenants import Tenancy
from schemas.errors import InvalidInput
from schemas.headers import JOB, SIGNATURE, TENANT, RequestHeaders

KEY = SecretStr("a-key-of-sixteen-chars-or-more")
MINE = RequestHeaders(id="r1", tenant="acme", job="j" * 16, item=3)


def test_what_a_gateway_signed_is_read_back() -> None:
    assert Tenancy(KEY).read(Tenancy(KEY).write(MINE), fallback_id="x") == MINE


def test_the_public_tenant_needs_no_signature() -> None:
    public = replace(MINE, tenant="public")
    written = Tenancy(None).write(public)
    assert SIGNATURE not in written
    assert Tenancy(KEY).read(written, fallback_id="x") == public


@pytest.mark.parametrize("change", [{TENANT: "umbrella"}, {JOB: "k" * 16}, {SIGNATURE: ""}, {"Ms-Item": "4"}])
def test_a_changed_header_breaks_the_signature(change: dict[str, str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        Tenancy(KEY).read(Tenancy(KEY).write(MINE) | change, fallback_id="x")
    assert caught.value.field == TENANT


def test_another_key_proves_nothing() -> None:
    with pytest.raises(InvalidInput):
        Tenancy(SecretStr("another-key-of-sixteen")).read(Tenancy(KEY).write(MINE), fallback_id="x")


def test_without_a_key_only_the_public_tenant_is_served() -> None:
    assert Tenancy(None).may_sign("public")
    assert not Tenancy(None).may_sign("acme")
    with pytest.raises(InvalidInput):
        Tenancy(None).read(Tenancy(KEY).write(MINE), fallback_id="x")
