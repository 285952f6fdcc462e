"""The supervisor's decisions: whether to start a dead child again, when, and who stops first. No I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

STOP_ORDER = ("gateway", "worker", "scheduler", "valkey", "nats")
DEFAULT_MAX_FILE_BYTES = 8 << 30
DEFAULT_RESULTS_BYTES = 16 << 30
_OTHER_STREAMS_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class Life:
    """One run of a child, from its start to its end."""

    lasted_s: float
    was_ready: bool


@dataclass(frozen=True, slots=True)
class RestartRules:
    """How patient the supervisor is."""

    first_delay_s: float = 0.5
    max_delay_s: float = 30.0
    settled_after_s: float = 30.0  # a life this long was a good one, and clears the record
    max_failed_starts: int = 3


@dataclass(frozen=True, slots=True)
class Restart:
    """Start the child again after `delay_s`."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The child can not be started; everything ends."""

    reason: str


def after_death(lives: Sequence[Life], rules: RestartRules) -> Restart | GiveUp:
    """Decide what follows the last of `lives`, which are a child's so far, oldest first.

    A child that was ready once is started again for ever, ever more slowly: what ends it then may pass.
    One that never was has a wrong setting or a missing file, which no restart mends.
    """
    if not any(life.was_ready for life in lives) and len(lives) >= rules.max_failed_starts:
        return GiveUp(f"ended {len(lives)} times before it was ready")
    short = 0
    for life in reversed(lives):
        if life.was_ready and life.lasted_s >= rules.settled_after_s:
            break
        short += 1
    doublings = min(max(short - 1, 0), 20)
    return Restart(min(rules.max_delay_s, rules.first_delay_s * 2.0**doublings))


def stop_groups(roles: Mapping[str, str]) -> list[list[str]]:
    """Group children, given as name to role, in the order they stop; those of a group stop together.

    First the gateway, so that nothing new comes in; the servers last, because all others drain through
    them. A role that STOP_ORDER does not know stops first.
    """
    unknown = sorted(name for name, role in roles.items() if role not in STOP_ORDER)
    known = [sorted(name for name, role in roles.items() if role == stopping) for stopping in STOP_ORDER]
    return [group for group in (unknown, *known) if group]


def stream_limits(free_bytes: int) -> dict[str, int]:
    """Size the streams for a disk with `free_bytes` left: half of it at most, and no more than the defaults.

    JetStream switches itself off when its disk is full, so the limits must bite before that.
    """
    wanted = DEFAULT_MAX_FILE_BYTES + DEFAULT_RESULTS_BYTES + _OTHER_STREAMS_BYTES
    share = min(1.0, free_bytes / 2 / wanted)
    return {
        "STREAM_MAX_BYTES": max(1 << 20, int(DEFAULT_MAX_FILE_BYTES * share)),
        "STREAM_RESULTS_MAX_BYTES": max(1 << 20, int(DEFAULT_RESULTS_BYTES * share)),
    }
