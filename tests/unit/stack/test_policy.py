"""What the supervisor decides."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.stack.policy import GiveUp, Life, Restart, RestartRules, after_death, stop_groups, stream_limits

RULES = RestartRules(first_delay_s=1, max_delay_s=8, settled_after_s=30, max_failed_starts=3)
FAILED_START = Life(lasted_s=1, was_ready=False)
SHORT = Life(lasted_s=1, was_ready=True)
LONG = Life(lasted_s=100, was_ready=True)


def test_a_first_death_is_answered_by_a_quick_restart() -> None:
    assert after_death([LONG], RULES) == Restart(1)


def test_delays_double_up_to_the_limit() -> None:
    delays = [after_death([LONG, *[SHORT] * n], RULES) for n in range(1, 6)]
    assert delays == [Restart(1), Restart(2), Restart(4), Restart(8), Restart(8)]


def test_a_long_life_clears_the_record() -> None:
    assert after_death([SHORT] * 5 + [LONG, SHORT], RULES) == Restart(1)


def test_a_child_that_was_never_ready_is_given_up() -> None:
    assert after_death([FAILED_START] * 2, RULES) == Restart(2)
    assert after_death([FAILED_START] * 3, RULES) == GiveUp("ended 3 times before it was ready")


def test_a_child_that_was_ready_once_is_never_given_up() -> None:
    assert after_death([SHORT] + [FAILED_START] * 50, RULES) == Restart(8)


@given(st.lists(st.builds(Life, st.floats(0, 1e6), st.booleans()), min_size=1))
def test_a_delay_is_within_the_rules(lives: list[Life]) -> None:
    decision = after_death(lives, RULES)
    assert isinstance(decision, GiveUp) or RULES.first_delay_s <= decision.delay_s <= RULES.max_delay_s


def test_the_gateway_stops_first_and_the_servers_last() -> None:
    roles = {
        "nats": "nats",
        "valkey": "valkey",
        "worker-2": "worker",
        "worker-1": "worker",
        "scheduler": "scheduler",
        "gateway": "gateway",
    }
    assert stop_groups(roles) == [["gateway"], ["worker-1", "worker-2"], ["scheduler"], ["valkey"], ["nats"]]


def test_a_child_of_unknown_role_stops_before_all_others() -> None:
    assert stop_groups({"gateway": "gateway", "extra": "probe"}) == [["extra"], ["gateway"]]


@pytest.mark.parametrize("free_gib", [1, 10, 40])
def test_stream_limits_leave_half_of_a_small_disk(free_gib: int) -> None:
    assert sum(stream_limits(free_gib << 30).values()) <= (free_gib << 30) / 2


def test_stream_limits_on_a_large_disk_are_the_defaults() -> None:
    assert stream_limits(1 << 40) == {"STREAM_MAX_BYTES": 8 << 30, "STREAM_RESULTS_MAX_BYTES": 16 << 30}
