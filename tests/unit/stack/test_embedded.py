"""What the children of `up` are told."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from scripts.stack.embedded import Plan, UpOptions, embedded_specs, wanted_ports
from scripts.stack.folder import DataFolder
from scripts.stack.ports import Wanted
from scripts.stack.reaper import groups_left
from scripts.stack.spec import ChildSpec
from scripts.stack.supervisor import describe_exit


def a_plan(tmp_path: Path, outer: Mapping[str, str] | None = None, **options: object) -> Plan:
    folder = DataFolder(tmp_path)
    chosen = UpOptions(data=tmp_path, **options)  # type: ignore[arg-type]
    ports = {name: 1000 + i for i, name in enumerate(wanted_ports(chosen))}
    return Plan(chosen, folder, folder.secrets(), ports, outer or {"PATH": "/bin", "LOG_LEVEL": "debug"})


def by_name(plan: Plan) -> dict[str, ChildSpec]:
    return {spec.name: spec for spec in embedded_specs(plan)}


def test_the_servers_start_before_the_services(tmp_path: Path) -> None:
    stages = {spec.name: spec.stage for spec in embedded_specs(a_plan(tmp_path, workers=2))}
    assert stages == {"nats": 0, "valkey": 0, "scheduler": 1, "worker-1": 1, "worker-2": 1, "gateway": 1}


@pytest.mark.parametrize("role", ["gateway", "worker", "scheduler"])
def test_a_service_gets_the_credentials_of_its_role_and_of_no_other(tmp_path: Path, role: str) -> None:
    plan = a_plan(tmp_path)
    environment = by_name(plan)[role].environment
    passwords = {name: value for name, value in plan.secrets.items() if name.startswith("NATS_")}
    mine = passwords.pop(f"NATS_{role.upper()}_PASSWORD")
    assert (environment["NATS_USER"], environment["NATS_PASSWORD"]) == (role, mine)
    assert not set(passwords.values()) & set(environment.values())
    assert environment["LOG_LEVEL"] == "debug"


def test_only_the_gateway_gets_the_api_keys_and_the_public_host(tmp_path: Path) -> None:
    specs = by_name(a_plan(tmp_path, host="0.0.0.0"))  # noqa: S104 - what is tested
    assert specs["gateway"].environment["GATEWAY_HOST"] == "0.0.0.0"  # noqa: S104
    assert [name for name, spec in specs.items() if "API_KEYS" in spec.environment] == ["gateway"]
    assert specs["gateway"].where.startswith("http://127.0.0.1:")


def test_the_services_share_the_signing_key_and_the_servers_never_see_it(tmp_path: Path) -> None:
    plan = a_plan(tmp_path)
    holders = {spec.name: spec.environment.get("TENANT_SIGNING_KEY") for spec in embedded_specs(plan)}
    key = plan.secrets["TENANT_SIGNING_KEY"]
    services = dict.fromkeys(("scheduler", "worker", "gateway"), key)
    assert holders == {"nats": None, "valkey": None, **services}


def test_a_stream_limit_of_the_user_is_kept(tmp_path: Path) -> None:
    specs = by_name(a_plan(tmp_path, {"STREAM_MAX_BYTES": "12345678"}))
    assert specs["scheduler"].environment["STREAM_MAX_BYTES"] == "12345678"


def test_an_ipv6_host_is_bracketed(tmp_path: Path) -> None:
    assert a_plan(tmp_path, host="::1").gateway_url.startswith("http://[::1]:")


def test_a_port_that_the_user_names_is_taken_exactly(tmp_path: Path) -> None:
    wanted = wanted_ports(UpOptions(data=tmp_path, port=1234, usual_ports=False))
    assert wanted.pop("gateway") == Wanted(1234, exact=True)
    assert set(wanted.values()) == {Wanted(0)}


def test_the_reaper_kills_the_groups_that_did_not_end() -> None:
    assert groups_left(["+10\n", "+11\n", "-10\n", "+12\n"]) == {11, 12}


@pytest.mark.parametrize(("code", "name"), [(0, "exit code 0"), (-9, "SIGKILL"), (-200, "signal 200")])
def test_an_exit_code_is_named(code: int, name: str) -> None:
    assert describe_exit(code) == name
