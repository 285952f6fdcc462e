"""Runs `up` as a process for tests: real NATS and Valkey, and tiny services in place of ours.

    python -m tests.stack_driver DATA [--fault ROLE=HOW]...

HOW is `deaf` (ignores SIGTERM), `dying` (exits at once) or `missing` (no such program).
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from scripts.stack.embedded import Plan, UpOptions, embedded_specs
from scripts.stack.policy import RestartRules
from scripts.stack.spec import ChildSpec
from scripts.stack.up import Recipe, run_up

TINY = Path(__file__).with_name("tiny_service.py")
PORT_VARIABLES = {
    "gateway": "GATEWAY_PORT",
    "worker": "WORKER_METRICS_PORT",
    "scheduler": "SCHEDULER_METRICS_PORT",
}


def tiny_spec(spec: ChildSpec, how: str) -> ChildSpec:
    """Put a tiny service in the place of one of ours."""
    if spec.role not in PORT_VARIABLES:
        return spec
    if how == "missing":
        return replace(spec, command=["/nonexistent/program"])
    port = spec.environment[PORT_VARIABLES[spec.role]]
    return replace(spec, command=[sys.executable, str(TINY), spec.name, port, how], stop_grace_s=1.0)


def recipe(faults: Mapping[str, str]) -> Recipe:
    """Build the stack with tiny services; `faults` maps a role to how it fails."""

    def specs(plan: Plan) -> Sequence[ChildSpec]:
        return [tiny_spec(spec, faults.get(spec.role, "good")) for spec in embedded_specs(plan)]

    rules = RestartRules(first_delay_s=0.01, max_delay_s=0.05)
    return Recipe(specs=specs, install_models=lambda _: None, rules=rules)


def main() -> int:
    """Run until a signal comes, as `model-serving up` does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--fault", action="append", default=[])
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    options = UpOptions(data=arguments.data, usual_ports=False, workers=arguments.workers)
    return run_up(options, recipe(dict(fault.split("=") for fault in arguments.fault)))


if __name__ == "__main__":
    sys.exit(main())
