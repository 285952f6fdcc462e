"""Dead letters: copies of messages that were given up, with the reason, for people to look at."""

from infra.connections.reading import Stored
from infra.connections.requests import Requests
from schemas.errors import Unavailable
from schemas.headers import CONTENT_TYPE, DEADLINE_MS, ITEM, JOB, MSG_ID, PRIORITY, REASON, REPLY_TO, TENANT

ORIGINAL_SUBJECT = "Ms-Subject"
_KEPT = (TENANT, JOB, ITEM, REPLY_TO, DEADLINE_MS, PRIORITY, CONTENT_TYPE)
MAX_REASON_CHARS = 500


async def bury(requests: Requests, stream: str, message: Stored, reason: str) -> None:
    """Copy a message to the dead letters; copying the same one again changes nothing. Raises Unavailable.

    The copy's id is made of the original's place in its stream, and its other headers are kept only if
    we know them, so that no header of a stranger's can act on the DEAD stream.
    """
    token = message.subject.split(".")[1]
    headers = {name: message.headers[name] for name in _KEPT if name in message.headers}
    headers |= {
        MSG_ID: f"{stream}:{message.seq}",
        ORIGINAL_SUBJECT: message.subject,
        REASON: reason[:MAX_REASON_CHARS].replace("\r", " ").replace("\n", " "),
    }
    ack = await requests.publish(f"dead.{token}", message.body, headers)
    if ack.err_code:
        raise Unavailable(f"dead letters can not be stored now: {ack.description}", retry_after_s=5)
