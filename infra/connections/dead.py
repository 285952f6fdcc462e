"""Dead letters: copies of messages that were given up, with the reason, for people to look at."""

import hashlib
import re

from infra.connections.reading import Stored
from infra.connections.requests import Requests
from schemas.errors import Unavailable
from schemas.headers import CONTENT_TYPE, DEADLINE_MS, ITEM, JOB, MSG_ID, PRIORITY, REASON, REPLY_TO, TENANT

ORIGINAL_SUBJECT = "Ms-Subject"
ORIGINAL_BYTES = "Ms-Original-Bytes"  # only where the copy was cut
_KEPT = (TENANT, JOB, ITEM, REPLY_TO, DEADLINE_MS, PRIORITY, CONTENT_TYPE)
MAX_REASON_CHARS = 500
MAX_HEADER_CHARS = 500
_TOKEN = re.compile(r"[A-Za-z0-9_~-]{1,300}")
_NO_MODEL = "~"  # where the subject names nothing that could be a model


async def bury(requests: Requests, stream: str, message: Stored, reason: str) -> None:
    """Copy a message to the dead letters; copying the same one again changes nothing. Raises Unavailable.

    The copy's id is made of the original's place in its stream, and of its body, because a stream in memory
    counts anew after a restart. Its other headers are kept only if we know them, so that no header of a
    stranger's can act on the DEAD stream. A body that has no room beside our headers is cut.
    """
    headers = {name: message.headers[name][:MAX_HEADER_CHARS] for name in _KEPT if name in message.headers}
    headers |= {
        MSG_ID: f"{stream}:{message.seq}:{hashlib.sha256(message.body).hexdigest()[:16]}",
        ORIGINAL_SUBJECT: message.subject[:MAX_HEADER_CHARS],
        REASON: reason[:MAX_REASON_CHARS].replace("\r", " ").replace("\n", " "),
    }
    body = message.body
    if len(body) > requests.room_for_body(headers):
        headers[ORIGINAL_BYTES] = str(len(body))
        body = body[: requests.room_for_body(headers)]
    ack = await requests.publish(f"dead.{_token(message.subject)}", body, headers)
    if ack.err_code:
        raise Unavailable(f"dead letters can not be stored now: {ack.description}", retry_after_s=5)


def _token(subject: str) -> str:
    """Take the model's token from a subject, which may hold anything that the server takes for a token."""
    token = subject.split(".")[1]
    return token if _TOKEN.fullmatch(token) else _NO_MODEL
