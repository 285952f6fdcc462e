"""The gateway's settings: what is refused at the start, and in which words."""

from typing import Any

import pytest
from pydantic import ValidationError

from gateway.settings import GatewaySettings, Settings, explain

KEY = "a-key-0123456789abcdef"


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEYS", "ADMIN_API_KEYS", "AUTH", "GATEWAY_HOST", "GATEWAY_PORT"):
        monkeypatch.delenv(name, raising=False)


def explained(**values: Any) -> str:
    with pytest.raises(ValidationError) as refused:
        GatewaySettings(**values)
    return "\n".join(explain(refused.value))


def test_no_keys_and_no_word_about_it_is_refused() -> None:
    assert "API_KEYS is empty" in explained()


def test_a_key_for_both_callers_and_admins_is_refused() -> None:
    told = explained(api_keys=f"acme:{KEY}", admin_api_keys=f"root:{KEY}")
    assert "share a key" in told
    assert KEY not in told


def test_a_bad_admin_key_is_named_by_its_variable() -> None:
    assert "ADMIN_API_KEYS: entry 1" in explained(api_keys=KEY, admin_api_keys="root:short")


def test_auth_off_is_refused_on_a_public_address() -> None:
    for host in ("0.0.0.0", "::", "10.0.0.1", "gateway.example.com"):  # noqa: S104 - that is the point
        assert "AUTH=off is refused" in explained(auth="off", host=host)


def test_auth_off_is_fine_on_loopback() -> None:
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert GatewaySettings(auth="off", host=host).on_loopback


def test_keys_come_from_a_name_without_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", f"acme:{KEY}")
    monkeypatch.setenv("GATEWAY_PORT", "9000")
    settings = GatewaySettings()
    assert settings.port == 9000
    assert settings.api_keys.get_secret_value() == f"acme:{KEY}"
    assert KEY not in repr(settings)


def test_an_error_names_the_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", "tooshort")
    monkeypatch.setenv("GATEWAY_PORT", "high")
    with pytest.raises(ValidationError) as refused:
        Settings()
    lines = explain(refused.value)
    assert [line.partition(":")[0] for line in lines] == ["GATEWAY_PORT", "API_KEYS"]
    assert "tooshort" not in "".join(lines)


def test_an_error_in_a_shared_setting_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", KEY)
    monkeypatch.setenv("NATS_ACK_TIMEOUT_S", "never")
    with pytest.raises(ValidationError) as refused:
        Settings()
    assert explain(refused.value)[0].startswith("NATS_ACK_TIMEOUT_S: ")


@pytest.mark.parametrize(
    ("host", "said", "is_open"),
    [
        ("127.0.0.1", None, True),
        ("0.0.0.0", None, False),  # noqa: S104 - that is the point
        ("127.0.0.1", False, False),
        ("0.0.0.0", True, True),  # noqa: S104 - that is the point
    ],
)
def test_metrics_are_open_on_loopback_or_where_it_is_said(
    host: str, said: bool | None, is_open: bool
) -> None:
    assert GatewaySettings(host=host, open_metrics=said, api_keys=KEY).metrics_are_open is is_open
