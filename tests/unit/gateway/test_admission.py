"""Admission: who is refused, for what, and when it may come again."""

from collections.abc import Sequence
from contextlib import ExitStack

import pytest

from gateway.admission import (
    FLOOR_IN_FLIGHT,
    Admission,
    AdmissionLimits,
    Bucket,
    ServiceRate,
    excess_wait_s,
)
from gateway.call import Call, new_call
from gateway.catalogue import Catalogue
from schemas.errors import ModelFailed, Overloaded
from schemas.placement import BacklogReport
from schemas.subjects import Lane
from tests.unit.gateway.builders import a_card
from tests.unit.gateway.test_catalogue import Placement


class Clock:
    """Monotonic time that stands still unless told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def an_admission(clock: Clock | None = None, *, in_flight: int = 8, per_s: float = 0.0) -> Admission:
    return Admission(AdmissionLimits(in_flight, per_s, 10.0), Catalogue(Placement()), clock=clock or Clock())


def a_call(tenant: str = "acme") -> Call:
    call = new_call(None)
    call.tenant = tenant
    return call


def a_rate(per_s: float, *, in_flight: int, busy_s: float = 1.0) -> ServiceRate:
    """A model that answered `per_s` a second until 0, with so many requests before it now."""
    rate = ServiceRate()
    for _ in range(in_flight + int(per_s * busy_s)):
        rate.begin(-busy_s)
    for answer in range(int(per_s * busy_s)):
        rate.end((answer + 1) / per_s - busy_s, served=True)
    return rate


def is_in(rate: ServiceRate, *, timeout_s: float = 30, now_s: float = 0.0, slots: int = 64) -> bool:
    return excess_wait_s(rate, now_s, timeout_s=timeout_s, max_wait_s=10, slots=slots) is None


def test_a_rate_is_answers_per_second_while_anything_is_asked() -> None:
    assert a_rate(50, in_flight=1).per_s(0.0) == pytest.approx(50, rel=0.1)
    idle = a_rate(50, in_flight=0)
    assert idle.per_s(1000.0) == idle.per_s(0.0)


def test_silence_lowers_a_rate_and_bursts_do_not() -> None:
    rate = a_rate(50, in_flight=10)
    assert rate.per_s(5.0) == pytest.approx(0.2, abs=0.1)
    bursty = ServiceRate()
    for burst in range(1, 6):
        for _ in range(64):
            bursty.begin(5.0 * burst - 5)
        for _ in range(64):
            bursty.end(5.0 * burst, served=True)
    bursty.begin(25.0)
    assert bursty.per_s(29.9) == pytest.approx(12.8, rel=0.3)


def test_requests_that_nobody_answered_are_no_answers() -> None:
    rate = ServiceRate()
    for _ in range(10):
        rate.begin(0.0)
        rate.end(1.0, served=False)
    assert rate.per_s(1.0) is None


def test_whoever_would_wait_too_long_is_refused() -> None:
    assert is_in(a_rate(50, in_flight=400))  # 8 s
    assert not is_in(a_rate(50, in_flight=600))  # 12 s, at most 10
    assert not is_in(a_rate(50, in_flight=400), timeout_s=12)  # at most half of what it has


def test_the_time_in_which_a_model_was_loaded_is_not_its_slowness() -> None:
    rate = ServiceRate()
    for waited_s in (30.0, 60.0):  # nobody serves it yet; then one caller is answered, late
        rate.begin(waited_s - 30)
        rate.end(waited_s, served=waited_s == 60.0)
    for answer in range(50):
        rate.begin(60.0 + answer * 0.02)
        rate.end(60.0 + (answer + 1) * 0.02, served=True)
    assert rate.per_s(61.0) == pytest.approx(50, rel=0.1)


def test_before_a_rate_is_known_and_below_the_floor_everybody_comes_in() -> None:
    unknown = ServiceRate()
    for _ in range(1000):
        unknown.begin(0.0)
    assert is_in(unknown)
    slow = a_rate(4, in_flight=FLOOR_IN_FLIGHT - 1, busy_s=2)  # 16 s
    assert is_in(slow)


def test_the_floor_does_not_hold_where_the_answer_can_not_come_in_time() -> None:
    hopeless = a_rate(1, in_flight=40, busy_s=3)
    assert not is_in(hopeless, slots=1)
    assert is_in(hopeless, slots=16)  # it may be that it was measured with few callers


def test_a_tenant_has_so_many_requests_under_way_and_others_do_not_mind() -> None:
    admission, call = an_admission(in_flight=2), a_call()
    with ExitStack() as under_way:
        for _ in range(2):
            under_way.enter_context(admission.tenant(a_call()))
        with pytest.raises(Overloaded) as refused, admission.tenant(call):
            pass
        assert (refused.value.retry_after_s, call.refused_for) == (1.0, "tenant_concurrency")
        with admission.tenant(a_call("umbrella")):
            pass
    with admission.tenant(call):
        pass


def test_a_tenant_asks_so_often_a_second() -> None:
    clock = Clock()
    admission = an_admission(clock, per_s=2)
    assert [_comes_in(admission) for _ in range(3)] == [True, True, False]
    clock.now_s += 0.5
    assert [_comes_in(admission) for _ in range(2)] == [True, False]


def _comes_in(admission: Admission) -> bool:
    try:
        with admission.tenant(a_call()):
            return True
    except Overloaded:
        return False


def test_a_bucket_holds_what_a_second_brings_and_says_when_there_is_more() -> None:
    bucket = Bucket(0.25, 0.0)
    assert bucket.take(0.0) == 0
    assert bucket.take(1.0) == pytest.approx(3.0)
    assert bucket.take(1000.0) == 0
    assert bucket.take(1000.0) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([], 5),
        ([BacklogReport(model="m", lane=Lane.BATCH, waiting=100, per_s=4.0)], 25),
        ([BacklogReport(model="m", lane=Lane.BATCH, waiting=100, per_s=0.0)], 120),
        ([BacklogReport(model="m", lane=Lane.BATCH, waiting=1, per_s=4.0)], 1),
        ([BacklogReport(model="m", lane=Lane.BATCH, waiting=9999, per_s=4.0)], 120),
    ],
)
async def test_a_full_queue_says_when_there_will_be_room(
    reports: Sequence[BacklogReport], expected: float
) -> None:
    placement = Placement(a_card("m"))
    placement.reports = list(reports)
    catalogue = Catalogue(placement)
    await catalogue.refresh()
    admission, call = Admission(AdmissionLimits(8, 0, 10), catalogue), a_call()
    with pytest.raises(Overloaded) as refused, admission.queue(call, a_card("m"), Lane.BATCH):
        raise Overloaded("the queue of this model is full")
    assert (refused.value.retry_after_s, call.refused_for) == (expected, "queue_full")


def test_a_model_that_fails_has_answered() -> None:
    clock = Clock()
    admission = an_admission(clock)

    def fail() -> None:
        with admission.live(a_call(), a_card("m"), timeout_s=30):
            clock.now_s += 1
            raise ModelFailed("it raised")

    for _ in range(3):
        with pytest.raises(ModelFailed):
            fail()
    assert admission._rates["m"].per_s(clock.now_s) == pytest.approx(1.0)
