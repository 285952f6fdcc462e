"""How fast a lane is served: counted while there is something to serve, and over restarts of the broker."""

from infra.connections.streams import Backlog
from scheduler.rates import Rates
from schemas.subjects import Lane

KEY = ("m", Lane.BATCH)


def a_backlog(settled: int, waiting: int = 9) -> Backlog:
    return Backlog(waiting=waiting, in_hand=0, redelivered=0, settled=settled)


def test_the_rate_is_what_was_settled_between_two_looks() -> None:
    rates = Rates()
    assert rates.update(KEY, a_backlog(100), 0.0) == 0
    assert rates.update(KEY, a_backlog(150), 5.0) == 10
    assert rates.update(KEY, a_backlog(250), 10.0) == 15  # halfway to 20


def test_idle_time_does_not_count() -> None:
    rates = Rates()
    rates.update(KEY, a_backlog(0), 0.0)
    rates.update(KEY, a_backlog(50, waiting=0), 5.0)
    assert rates.update(KEY, a_backlog(51, waiting=0), 100.0) == 0
    assert rates.update(KEY, a_backlog(51), 105.0) == 0
    assert rates.update(KEY, a_backlog(101), 110.0) == 10


def test_a_new_consumer_begins_anew_with_what_is_known() -> None:
    rates = Rates()
    rates.update(KEY, a_backlog(100), 0.0)
    rates.update(KEY, a_backlog(150), 5.0)
    assert rates.update(KEY, a_backlog(0), 10.0) == 10


def test_nobody_serving_is_a_rate_that_goes_to_nothing() -> None:
    rates = Rates()
    for look in range(12):
        rate = rates.update(KEY, a_backlog(100 if look else 0), 5.0 * look)
    assert rate < 0.1
