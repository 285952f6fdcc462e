"""Which stored requests count as given up: never one that somebody may hold."""

from infra.connections.streams import Backlog
from scheduler.parked import MAX_WALK, SLACK_S, parked, surplus, walk_length

PLACE, OTHER = (7, 1), (7, 2)  # the same number, before and after a restart


def a_backlog(*, waiting: int = 0, in_hand: int = 0) -> Backlog:
    return Backlog(waiting, in_hand, 0, delivered_seq=9, max_deliver=3, ack_wait_s=30.0)


def test_what_waits_or_is_in_hand_is_no_surplus() -> None:
    assert surplus(5, a_backlog(waiting=3, in_hand=2)) == 0
    assert surplus(6, a_backlog(waiting=3, in_hand=2)) == 1
    assert surplus(4, a_backlog(waiting=3, in_hand=2)) == 0  # the two were read at different moments


def test_what_is_seen_for_the_first_time_may_be_on_its_way_out() -> None:
    assert parked({PLACE: 10.0}, a_backlog(), now_s=10.0) == set()


def test_what_is_seen_again_while_nothing_is_in_hand_was_given_up() -> None:
    assert parked({PLACE: 10.0, OTHER: 20.0}, a_backlog(), now_s=20.0) == {PLACE}


def test_while_anything_is_in_hand_only_what_outlasts_every_delivery_was_given_up() -> None:
    longest_s = 3 * 30.0 + SLACK_S
    seen_s = {PLACE: 0.0, OTHER: 1.0}
    assert parked(seen_s, a_backlog(in_hand=1), now_s=longest_s) == set()
    assert parked(seen_s, a_backlog(in_hand=1), now_s=longest_s + 0.5) == {PLACE}


def test_a_large_surplus_is_worked_off_in_rounds() -> None:
    assert walk_length(1) < walk_length(50) < walk_length(10**6) == MAX_WALK
