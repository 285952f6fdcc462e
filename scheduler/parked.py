"""Decides which stored requests JetStream has given up without anybody hearing of it. Pure.

A request that was delivered as often as its consumer allows stays in its stream and is in nobody's hands:
the consumer counts it neither as waiting nor as in hand. The stream still does. Nothing else tells it from
those in hand: its consumer's ack floor stays below it until nothing is in hand.
"""

from collections.abc import Mapping

from infra.connections.streams import Backlog

Place = tuple[int, int]  # sequence and time of storing: a stream in memory counts anew after a restart
SLACK_S = 6 * 3600.0  # a worker may keep a delivery alive for as long as it runs
MIN_WALK, MAX_WALK = 16, 500


def surplus(stored: int, backlog: Backlog) -> int:
    """Count the requests that a stream holds beyond those its consumer knows of.

    The two are read at different moments, so more than none is only a reason to look closer.
    """
    return max(0, stored - backlog.waiting - backlog.in_hand)


def walk_length(surplus_: int) -> int:
    """Say how many of the oldest requests to look at: what is given up is older than what is in hand."""
    return min(MAX_WALK, MIN_WALK + 4 * surplus_)


def parked(seen_s: Mapping[Place, float], backlog: Backlog, *, now_s: float) -> set[Place]:
    """Choose, among stored requests, those that can not be in anybody's hands.

    `seen_s` says when each was first seen as delivered and still stored; `backlog` was read before they
    were seen this time.
    """
    # 1. Seen just now: it may have been settled, and is deleted the next moment.
    # 2. Its consumer holds nothing: nobody has it, and nobody will.
    # 3. Seen for longer than all its deliveries take: it is not among those in hand.
    longest_s = backlog.max_deliver * backlog.ack_wait_s + SLACK_S
    return {
        place
        for place, first_s in seen_s.items()
        if first_s < now_s and (backlog.in_hand == 0 or now_s - first_s > longest_s)
    }
