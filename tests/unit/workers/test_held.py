"""Deliveries in hand: their leases, their twins, and who waits for them."""

import asyncio
from dataclasses import replace

import pytest

from infra.connections.pulling import Delivery
from schemas.subjects import Lane
from workers.held import Held

LONG = dict.fromkeys(Lane, 60.0)
LAPSED = dict.fromkeys(Lane, 0.0)


def a_delivery(seq: int = 1, *, attempt: int = 1) -> Delivery:
    return Delivery(
        subject="infer.m.batch",
        headers={},
        body=b"",
        ack_subject=f"$JS.ACK.INFER.m-batch.{attempt}.{seq}.1.7.0",
        stream="INFER",
        stream_seq=seq,
        attempt=attempt,
        stored_at_ns=7,
        pending=0,
    )


def test_a_delivery_counts_on_its_lane_until_it_is_released() -> None:
    held = Held(LONG)
    held.add(a_delivery(), Lane.BATCH)
    assert (held.on(Lane.BATCH), held.on(Lane.LIVE), len(held)) == (1, 0, 1)
    assert held.release(a_delivery()) is Lane.BATCH
    assert held.release(a_delivery()) is None
    assert (held.on(Lane.BATCH), len(held)) == (0, 0)


def test_a_lease_lapses_after_its_ack_wait() -> None:
    fresh, lapsed = Held(LONG), Held(LAPSED)
    fresh.add(a_delivery(), Lane.BATCH)
    lapsed.add(a_delivery(), Lane.BATCH)
    assert fresh.is_leased(a_delivery())
    assert not lapsed.is_leased(a_delivery())


def test_what_is_not_held_is_not_leased() -> None:
    assert not Held(LONG).is_leased(a_delivery())


class CountingSettler:
    """Stands in for the broker's end."""

    def __init__(self) -> None:
        self.extended: list[str] = []

    async def in_progress(self, delivery: Delivery) -> None:
        self.extended.append(delivery.ack_subject)


async def test_a_lapsed_lease_is_not_extended_for_somebody_else_may_have_it() -> None:
    settler, lapsed, fresh = CountingSettler(), Held(LAPSED), Held(LONG)
    for held in (lapsed, fresh):
        held.add(a_delivery(), Lane.BATCH)
        await held.extend([Lane.BATCH], settler)  # type: ignore[arg-type]
    assert len(settler.extended) == 1


def test_an_older_delivery_of_the_same_message_is_its_twin() -> None:
    held = Held(LONG)
    held.add(a_delivery(1), Lane.BATCH)
    again = a_delivery(1, attempt=2)
    held.add(again, Lane.BATCH)
    assert held.twin(again) == a_delivery(1)
    assert held.twin(a_delivery(1)) is None


@pytest.mark.parametrize("other", [replace(a_delivery(2), attempt=1), replace(a_delivery(1), stored_at_ns=8)])
def test_another_message_is_no_twin(other: Delivery) -> None:
    held = Held(LONG)
    held.add(other, Lane.BATCH)
    assert held.twin(a_delivery(1, attempt=2)) is None


async def test_waiting_for_a_release_ends_with_it() -> None:
    held = Held(LONG)
    held.add(a_delivery(), Lane.BATCH)
    waiting = asyncio.ensure_future(held.until_released(a_delivery()))
    await asyncio.sleep(0)
    assert not waiting.done()
    held.release(a_delivery())
    await waiting
    await held.until_released(a_delivery())  # what is not held needs no waiting for
