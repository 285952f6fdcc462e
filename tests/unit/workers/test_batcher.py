"""Which requests run together, and when: limits, shapes, lanes by weight, and nothing lost."""

import itertools
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.subjects import Lane
from workers.batcher import LANE_WEIGHTS, Batcher, BatchLimits, Waiting

LIVE, INTERACTIVE, BATCH = Lane.LIVE, Lane.INTERACTIVE, Lane.BATCH
_names = itertools.count()


def entry(
    name: str = "",
    *,
    lane: Lane = LIVE,
    shape: str = "s",
    items: int = 1,
    size_bytes: int = 1,
    arrived_s: float = 0.0,
    deadline_s: float | None = None,
    priority: int = 0,
    alone: bool = False,
) -> Waiting[str]:
    return Waiting(
        name or f"r{next(_names)}", lane, shape, items, size_bytes, arrived_s, deadline_s, priority, alone
    )


def batcher(
    *entries: Waiting[str], max_items: int = 4, timeout_s: float = 1.0, max_bytes: int = 1000
) -> Batcher[str]:
    made: Batcher[str] = Batcher(BatchLimits(max_items=max_items, timeout_s=timeout_s, max_bytes=max_bytes))
    for one in entries:
        made.add(one)
    return made


def names(batch: Iterable[Waiting[str]]) -> list[str]:
    return [one.request for one in batch]


def all_batches(waiting: Batcher[str]) -> list[list[str]]:
    return list(iter(lambda: names(waiting.take()), []))


def test_requests_of_one_shape_run_together_in_the_order_they_came() -> None:
    assert all_batches(batcher(entry("a"), entry("b"), entry("c"))) == [["a", "b", "c"]]


def test_a_batch_holds_no_more_items_than_its_limit() -> None:
    waiting = batcher(entry("a", items=2), entry("b", items=2), entry("c"), max_items=4)
    assert all_batches(waiting) == [["a", "b"], ["c"]]


def test_a_request_that_no_longer_fits_lets_a_smaller_one_go_along() -> None:
    waiting = batcher(entry("a", items=3), entry("large", items=2), entry("small"), max_items=4)
    assert all_batches(waiting) == [["a", "small"], ["large"]]


def test_a_request_over_the_byte_limit_travels_by_itself() -> None:
    waiting = batcher(entry("small"), entry("huge", size_bytes=64), entry("later"), max_bytes=10)
    assert all_batches(waiting) == [["small", "later"], ["huge"]]
    assert all_batches(batcher(entry("huge", size_bytes=64), entry("a"), max_bytes=10)) == [["huge"], ["a"]]


def test_requests_of_different_shapes_never_run_together() -> None:
    waiting = batcher(entry("a", shape="x"), entry("b", shape="y"), entry("c", shape="x"))
    assert all_batches(waiting) == [["a", "c"], ["b"]]


def test_a_redelivered_request_runs_alone() -> None:
    waiting = batcher(entry("a"), entry("again", alone=True), entry("b"))
    assert all_batches(waiting) == [["a", "b"], ["again"]]
    assert all_batches(batcher(entry("again", alone=True), entry("a"))) == [["again"], ["a"]]


def test_higher_priority_goes_first_within_its_lane() -> None:
    waiting = batcher(
        entry("a"), entry("urgent", priority=9), entry("b"), entry("also", priority=9), max_items=1
    )
    assert all_batches(waiting) == [["urgent"], ["also"], ["a"], ["b"]]


def test_room_that_the_leading_lane_leaves_is_filled_from_the_others() -> None:
    waiting = batcher(entry("l"), entry("i", lane=INTERACTIVE), entry("b", lane=BATCH))
    assert sorted(all_batches(waiting)[0]) == ["b", "i", "l"]


def test_an_empty_batcher_has_nothing_to_do() -> None:
    waiting = batcher()
    assert len(waiting) == 0
    assert waiting.take() == []
    assert waiting.take_expired(1e9) == []
    assert waiting.ready_at(0.0, more_coming=True) is None


def test_the_first_request_waits_for_company_until_the_timeout() -> None:
    waiting = batcher(entry(arrived_s=10.0), entry(arrived_s=10.5), timeout_s=1.0)
    assert waiting.ready_at(10.6, more_coming=True) == 11.0


def test_nobody_waits_when_nothing_more_is_known_to_come() -> None:
    assert batcher(entry(arrived_s=10.0)).ready_at(10.0, more_coming=False) == 10.0


def test_a_full_batch_does_not_wait() -> None:
    assert batcher(entry(items=4, arrived_s=10.0), max_items=4).ready_at(10.0, more_coming=True) == 10.0


def test_a_request_that_runs_alone_has_no_company_to_wait_for() -> None:
    assert batcher(entry(arrived_s=10.0, alone=True)).ready_at(10.0, more_coming=True) == 10.0


def test_the_tightest_deadline_less_the_time_of_a_run_ends_the_waiting() -> None:
    waiting = batcher(entry(arrived_s=10.0), entry(arrived_s=10.0, deadline_s=10.4), timeout_s=1.0)
    assert waiting.ready_at(10.0, more_coming=True, run_s=0.3) == pytest.approx(10.1)


def test_what_is_past_its_deadline_is_taken_out_and_the_rest_keeps_its_order() -> None:
    waiting = batcher(entry("a"), entry("late", deadline_s=5.0), entry("b", deadline_s=5.1), entry("c"))
    assert names(waiting.take_expired(5.0)) == ["late"]
    assert len(waiting) == 3
    assert all_batches(waiting) == [["a", "b", "c"]]


def test_thousands_that_expire_at_once_are_taken_out_in_no_time() -> None:
    waiting = batcher(*(entry(deadline_s=float(i % 2)) for i in range(6000)))
    assert len(waiting.take_expired(0.5)) == 3000
    assert len(waiting) == 3000


def test_two_requests_that_look_alike_are_each_answered() -> None:
    waiting = batcher(entry("same"), entry("same"), max_items=1)
    assert all_batches(waiting) == [["same"], ["same"]]


def serve_always_full(
    waiting: Batcher[str], lanes: Sequence[Lane], batches: int, *, shapes: dict[Lane, str] | None = None
) -> dict[Lane, int]:
    """Take `batches` batches while every lane is always full, and count the items that each got."""
    got = dict.fromkeys(Lane, 0)
    for lane in lanes:
        for _ in range(32):
            waiting.add(entry(lane=lane, shape=(shapes or {}).get(lane, "s")))
    for _ in range(batches):
        for one in waiting.take():
            got[one.lane] += one.items
            waiting.add(entry(lane=one.lane, shape=one.shape))  # type: ignore[arg-type]
    return got


def share(got: dict[Lane, int], lane: Lane) -> float:
    return got[lane] / sum(got.values())


@pytest.mark.parametrize("lanes", [(LIVE, INTERACTIVE, BATCH), (LIVE, BATCH), (INTERACTIVE, BATCH)])
@pytest.mark.parametrize("shapes", [None, {LIVE: "x", INTERACTIVE: "y", BATCH: "z"}])
def test_lanes_that_are_always_full_get_items_by_their_weight(
    lanes: tuple[Lane, ...], shapes: dict[Lane, str] | None
) -> None:
    got = serve_always_full(batcher(max_items=8), lanes, 600, shapes=shapes)
    weights = sum(LANE_WEIGHTS[lane] for lane in lanes)
    for lane in lanes:
        assert share(got, lane) == pytest.approx(LANE_WEIGHTS[lane] / weights, rel=0.15)


def test_a_lane_that_had_everything_to_itself_for_long_does_not_pay_for_it() -> None:
    waiting = batcher(max_items=8)
    for _ in range(1000):  # a night of batch work
        waiting.add(entry(lane=BATCH, items=8))
        waiting.take()
    got = serve_always_full(waiting, (LIVE, BATCH), 300)
    assert share(got, BATCH) == pytest.approx(1 / 17, rel=0.2)


def test_a_lane_that_only_filled_room_does_not_pay_for_it_for_long() -> None:
    waiting = batcher(entry(lane=LIVE, shape="x", deadline_s=1.0), max_items=8)
    for _ in range(500):  # live requests of two shapes, never enough of one to fill a batch
        for shape in "xy":
            waiting.add(entry(lane=LIVE, shape=shape, deadline_s=1.0))
            for _ in range(8):
                waiting.add(entry(lane=BATCH, shape=shape, deadline_s=1.0))
        waiting.take()
    waiting.add(entry(lane=LIVE))
    waiting.add(entry(lane=BATCH))
    waiting.take_expired(1.0)
    got = serve_always_full(waiting, (LIVE, BATCH), 300)
    assert share(got, BATCH) == pytest.approx(1 / 17, rel=0.3)


def test_a_lane_that_was_idle_does_not_get_its_turns_back() -> None:
    waiting = batcher(max_items=8)
    serve_always_full(waiting, (BATCH,), 500)
    got = serve_always_full(waiting, (LIVE, BATCH), 100)
    assert got[BATCH] > 0
    assert share(got, BATCH) == pytest.approx(1 / 17, rel=0.5)


ENTRIES = st.builds(
    entry,
    lane=st.sampled_from(Lane),
    shape=st.sampled_from("xyz"),
    items=st.integers(1, 6),
    size_bytes=st.integers(0, 40),
    arrived_s=st.floats(0, 10),
    deadline_s=st.none() | st.floats(0, 20),
    priority=st.integers(0, 9),
    alone=st.booleans(),
)
BATCHERS = st.builds(
    batcher,
    max_items=st.integers(6, 12),
    timeout_s=st.floats(0, 2),
    max_bytes=st.integers(40, 100),
)


@settings(deadline=None)
@given(BATCHERS, st.lists(st.one_of(ENTRIES, st.floats(0, 20), st.none()), max_size=60))
def test_no_request_is_lost_doubled_or_put_into_a_batch_it_does_not_fit(
    waiting: Batcher[str], steps: list[Waiting[str] | float | None]
) -> None:
    """A step is a request that comes, a time at which deadlines are looked at, or a batch taken (None)."""
    limits = waiting._limits
    given_in: list[Waiting[str]] = []
    taken_out: list[Waiting[str]] = []
    for step in [*steps, *([None] * len(steps))]:
        if isinstance(step, Waiting):
            waiting.add(step)
            given_in.append(step)
        elif step is None:
            batch = waiting.take()
            assert bool(batch) == (len(given_in) > len(taken_out))
            taken_out += batch
            if len(batch) > 1:
                assert len({one.shape for one in batch}) == 1
                assert not any(one.alone for one in batch)
                assert sum(one.items for one in batch) <= limits.max_items
                assert sum(one.size_bytes for one in batch) <= limits.max_bytes
        else:
            late = waiting.take_expired(step)
            assert all(one.deadline_s is not None and one.deadline_s <= step for one in late)
            taken_out += late
        assert len(waiting) == len(given_in) - len(taken_out)
    assert sorted(map(id, taken_out)) == sorted(map(id, given_in))


@settings(deadline=None)
@given(BATCHERS, st.lists(ENTRIES, min_size=1, max_size=30), st.floats(0, 12), st.booleans(), st.floats(0, 2))
def test_no_batch_waits_longer_than_its_oldest_may(
    waiting: Batcher[str], entries: list[Waiting[str]], now_s: float, more_coming: bool, run_s: float
) -> None:
    for one in entries:
        waiting.add(one)
    start_s = waiting.ready_at(now_s, more_coming=more_coming, run_s=run_s)
    batch = waiting.take()
    assert start_s is not None
    if start_s == now_s:
        return  # it starts at once, for one of the reasons above
    assert start_s <= min(one.arrived_s for one in batch) + waiting._limits.timeout_s
    for one in batch:
        assert one.deadline_s is None or start_s <= one.deadline_s - run_s


@settings(deadline=None, max_examples=25)
@given(
    st.dictionaries(st.sampled_from(Lane), st.sampled_from("xyz"), min_size=3),
    st.lists(st.tuples(st.sampled_from(Lane), st.integers(1, 40)), max_size=20),
    st.integers(1, 16),
)
def test_no_history_lets_a_full_lane_starve(
    shapes: dict[Lane, str], history: list[tuple[Lane, int]], max_items: int
) -> None:
    waiting = batcher(max_items=max_items)
    for lane, count in history:
        for _ in range(count):
            waiting.add(entry(lane=lane, shape="h"))
        waiting.take()
    got = serve_always_full(waiting, tuple(Lane), 300, shapes=shapes)
    for lane in Lane:
        assert share(got, lane) > 0.5 * LANE_WEIGHTS[lane] / 21
