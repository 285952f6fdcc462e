"""What JetStream's refusals mean to a caller."""

from infra.connections.requests import PubAck
from schemas.errors import Overloaded, TooLarge, Unavailable

STORE_FAILED = 10077  # a limit of the stream is reached, or its disk
MESSAGE_TOO_LARGE = 10054


def check_stored(ack: PubAck) -> None:
    """Return if the message is stored. Raises Overloaded, TooLarge or Unavailable if it was refused."""
    if not ack.err_code:
        return
    if ack.err_code == STORE_FAILED:
        raise Overloaded("the queue of this model is full")  # when there is room, admission knows
    if ack.err_code == MESSAGE_TOO_LARGE:
        raise TooLarge("the request is over the queue's limit of one message", field="body")
    raise Unavailable("the queue does not take requests now", retry_after_s=2)
