"""Decides what becomes of a delivery once its outcome is known. Pure: the runner acts on it.

    outcome                         store, if a job   reply, if awaited   to JetStream
    result                          succeeded         result              ack
    the request's own fault         failed            failure             ack
    expired, cancelled              expired, ...      failure             ack
    malformed message               failed            failure             copy to DEAD, ack
    nobody to tell                  -                 -                   copy to DEAD, ack
    our plumbing, attempts left     -                 -                   nak with a growing delay
    our plumbing, last attempt      failed            failure             copy to DEAD, ack
    poison                          failed            failure             copy to DEAD, ack
    any but a result, lease lapsed  -                 -                   nothing

A failure of a model's input is final at once; trying again would cost workers and change nothing. Poison is
what was started as often as allowed and never ended. Once the lease has lapsed, somebody else may have the
request; only a result may still be given, for the first one stored stands.
"""

from dataclasses import dataclass
from enum import StrEnum

from schemas.envelope import Result
from schemas.errors import ErrorCode, InferenceError
from schemas.jobs import ItemState, item_state_of

NAK_DELAYS_S = (1.0, 5.0, 15.0, 30.0)


class Settled(StrEnum):
    """The word JetStream gets."""

    ACK = "ack"
    NAK = "nak"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Settlement:
    """What to do, in this order: store, reply, copy to the dead letters, then tell JetStream."""

    settled: Settled
    store: ItemState | None = None
    reply: bool = False
    dead_reason: str | None = None
    delay_s: float = 0.0


def settle(
    outcome: Result | InferenceError,
    *,
    attempt: int,
    max_deliver: int,
    is_job: bool,
    awaited: bool,
    malformed: bool = False,
    leased: bool = True,
) -> Settlement:
    """Decide. `is_job`: a record is to be kept. `awaited`: a reply subject was given."""
    if isinstance(outcome, Result):
        return Settlement(Settled.ACK, store=ItemState.SUCCEEDED if is_job else None, reply=awaited)
    if not leased:
        return Settlement(Settled.NOTHING)
    if outcome.retryable and attempt < max_deliver:
        delay_s = NAK_DELAYS_S[min(attempt, len(NAK_DELAYS_S)) - 1]
        return Settlement(Settled.NAK, delay_s=delay_s)
    told = is_job or awaited
    dead = malformed or outcome.retryable or outcome.code is ErrorCode.POISON or not told
    return Settlement(
        Settled.ACK,
        store=item_state_of(outcome.code) if is_job else None,
        reply=awaited,
        dead_reason=f"{outcome.code}: {outcome.message}" if dead else None,
    )
