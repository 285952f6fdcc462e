"""The streams and consumers, as desired state: what they should be, and how to bring the server there.

Only the scheduler declares. Declaring what is there already changes nothing, so it is done again
after every reconnection: INFER_LIVE is in memory and is gone after a restart of the server.
"""

import base64
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog

from infra.connections.reading import Stored
from infra.connections.requests import ApiError, Requests
from infra.connections.settings import StreamSettings
from schemas.errors import InvalidInput
from schemas.subjects import (
    ADVISORIES_STREAM,
    ADVISORY_CONSUMER,
    ATTEMPTS_STREAM,
    DEAD_STREAM,
    INFER_STREAM,
    JOBS_STREAM,
    LIVE_STREAM,
    RESULTS_STREAM,
    Lane,
    consumer_name,
    infer_subject,
    model_of_token,
)

log = structlog.get_logger()

STREAM_NOT_FOUND = 10059
CONSUMER_NOT_FOUND = 10014
# Workers count starts and stop at `max_deliver`. A delivery is not always a start: a request may be in the
# hands of a worker that another request ends. The broker's own limit is only the far back-stop.
DELIVERY_SLACK = 20
MESSAGE_NOT_FOUND = 10037
MESSAGE_DELETE_FAILED = 10057

ADVISORY_ACK_WAIT_S = 60
ADVISORIES_IN_HAND = 8

_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Backlog:
    """What one durable consumer has before it: not yet delivered, and delivered but not settled.

    It delivered nothing after `delivered_seq`, and gives a message up after `max_deliver` deliveries.
    """

    waiting: int
    in_hand: int
    redelivered: int
    delivered_seq: int = 0
    max_deliver: int = 1
    ack_wait_s: float = 30.0
    settled: int = 0  # deliveries that ended, since the consumer exists


@dataclass(frozen=True, slots=True)
class OldMessage:
    """A stored message and when the broker stored it, unix nanoseconds."""

    message: Stored
    stored_at_ns: int


def stream_configs(settings: StreamSettings) -> list[dict[str, Any]]:
    """Describe every stream in the form of JetStream's API."""
    work = {
        "retention": "workqueue",
        "discard": "new",
        "discard_new_per_subject": True,
        "max_msgs_per_subject": settings.max_requests,
        "duplicate_window": int(settings.duplicate_window_s * _NS),
        "allow_msg_ttl": True,
    }
    kept = {"retention": "limits", "storage": "file", "allow_direct": True}
    ttl_ns = int(settings.result_ttl_s * _NS)
    dead_ttl_ns = int(settings.dead_ttl_s * _NS)
    streams: list[dict[str, Any]] = [
        work
        | {
            "name": INFER_STREAM,
            "subjects": [f"infer.*.{Lane.INTERACTIVE}", f"infer.*.{Lane.BATCH}"],
            "storage": "file",
            "max_bytes": settings.max_bytes,
        },
        work
        | {
            "name": LIVE_STREAM,
            "subjects": [f"infer.*.{Lane.LIVE}"],
            "storage": "memory",
            "max_bytes": settings.live_max_bytes,
        },
        kept
        | {
            "name": JOBS_STREAM,
            "subjects": ["job.*.*", "cancel.*.*", "webhook.*.*"],
            "max_msgs_per_subject": 1,
            "max_age": ttl_ns,
        },
        kept
        | {
            "name": RESULTS_STREAM,
            "subjects": ["result.*.*.*"],
            "discard": "new",
            "discard_new_per_subject": True,
            "max_msgs_per_subject": 1,
            "max_bytes": settings.results_max_bytes,
            "max_age": ttl_ns,
            "allow_msg_ttl": True,
        },
        kept
        | {
            "name": ATTEMPTS_STREAM,
            "subjects": ["attempt.*.*.*"],
            "max_msgs_per_subject": 64,
            "max_age": ttl_ns,
        },
        kept | {"name": DEAD_STREAM, "subjects": ["dead.*"], "max_age": dead_ttl_ns},
        kept
        | {
            "name": ADVISORIES_STREAM,
            "subjects": [
                f"$JS.EVENT.ADVISORY.CONSUMER.{kind}.{stream}.*"
                for kind in ("MAX_DELIVERIES", "MSG_TERMINATED")
                for stream in (INFER_STREAM, LIVE_STREAM)
            ],
            "max_age": dead_ttl_ns,
        },
    ]
    return [stream | {"num_replicas": settings.replicas} for stream in streams]


def consumer_config(model: str, lane: Lane, settings: StreamSettings) -> dict[str, Any]:
    """Describe the durable consumer of one model and lane."""
    return {
        "durable_name": consumer_name(model, lane),
        "filter_subject": infer_subject(model, lane),
        "ack_policy": "explicit",
        "deliver_policy": "all",
        "ack_wait": int(settings.ack_wait_of(lane) * _NS),
        "max_deliver": settings.max_deliver + DELIVERY_SLACK,
        "max_ack_pending": settings.max_ack_pending,
        "max_waiting": 2048,
    }


def advisory_consumer_config() -> dict[str, Any]:
    """Describe the consumer of advisories: few in hand, and each delivered until somebody acks it."""
    return {
        "durable_name": ADVISORY_CONSUMER,
        "ack_policy": "explicit",
        "deliver_policy": "all",
        "ack_wait": ADVISORY_ACK_WAIT_S * _NS,
        "max_ack_pending": ADVISORIES_IN_HAND,
    }


class Streams:
    """Declares streams and consumers, and reads how full they are."""

    def __init__(self, requests: Requests, settings: StreamSettings) -> None:
        self._requests = requests
        self._settings = settings

    async def declare(self) -> None:
        """Create or update every stream. Raises ApiError if the server can not have it so."""
        for config in stream_configs(self._settings):
            try:
                await self._requests.api(f"STREAM.INFO.{config['name']}")
            except ApiError as error:
                if error.err_code != STREAM_NOT_FOUND:
                    raise
                await self._requests.api(f"STREAM.CREATE.{config['name']}", config)
                log.info("stream created", stream=config["name"])
            else:
                await self._requests.api(f"STREAM.UPDATE.{config['name']}", config)
        await self._requests.api(
            f"CONSUMER.CREATE.{ADVISORIES_STREAM}.{ADVISORY_CONSUMER}",
            {"stream_name": ADVISORIES_STREAM, "config": advisory_consumer_config()},
        )

    async def declare_consumers(self, model: str) -> None:
        """Create or update the durable consumers of `model`, one a lane."""
        for lane in Lane:
            config = consumer_config(model, lane, self._settings)
            name = config["durable_name"]
            await self._requests.api(
                f"CONSUMER.CREATE.{lane.stream}.{name}.{config['filter_subject']}",
                {"stream_name": lane.stream, "config": config},
            )

    async def declared_models(self) -> set[str]:
        """List the models that have consumers, whoever declared them."""
        names: list[str] = []
        while True:
            answer = await self._requests.api(f"CONSUMER.NAMES.{INFER_STREAM}", {"offset": len(names)})
            page = answer.get("consumers") or []
            names += page
            if not page or len(names) >= answer.get("total", 0):
                return {model for name in names if (model := _model_of(name)) is not None}

    async def backlog(self, model: str, lane: Lane) -> Backlog:
        """Read how far behind one consumer is. Raises ApiError if it does not exist."""
        info = await self._requests.api(f"CONSUMER.INFO.{lane.stream}.{consumer_name(model, lane)}")
        return Backlog(
            waiting=info["num_pending"],
            in_hand=info["num_ack_pending"],
            redelivered=info["num_redelivered"],
            delivered_seq=info["delivered"]["stream_seq"],
            max_deliver=info["config"]["max_deliver"],
            ack_wait_s=info["config"]["ack_wait"] / _NS,
            settled=info["delivered"]["consumer_seq"] - info["num_ack_pending"],
        )

    async def oldest(self, stream: str, subjects: str, *, from_seq: int = 1) -> OldMessage | None:
        """Return the oldest message, from `from_seq` on, that matches the filter `subjects`, or None.

        A subject that a stranger published to may itself read as a filter: `infer.*.live`.
        """
        return await self._get(stream, {"seq": from_seq, "next_by_subj": subjects})

    async def at(self, stream: str, seq: int) -> OldMessage | None:
        """Return the message with this sequence, or None if it is gone."""
        return await self._get(stream, {"seq": seq})

    async def _get(self, stream: str, wanted: dict[str, Any]) -> OldMessage | None:
        try:
            found = await self._requests.api(f"STREAM.MSG.GET.{stream}", wanted)
        except ApiError as error:
            if error.err_code == MESSAGE_NOT_FOUND:
                return None
            raise
        raw = found["message"]
        stored_at = datetime.fromisoformat(raw["time"])
        message = Stored(
            subject=raw["subject"],
            headers=_header_map(base64.b64decode(raw.get("hdrs", ""))),
            body=base64.b64decode(raw.get("data", "")),
            seq=raw["seq"],
        )
        return OldMessage(message, int(stored_at.timestamp() * 1e9))

    async def remove(self, stream: str, seq: int) -> None:
        """Delete one message; one that is gone already is no error."""
        try:
            await self._requests.api(f"STREAM.MSG.DELETE.{stream}", {"seq": seq, "no_erase": True})
        except ApiError as error:
            if error.err_code not in (MESSAGE_NOT_FOUND, MESSAGE_DELETE_FAILED):
                raise

    async def count(self, stream: str) -> int:
        """Count the messages that a stream holds."""
        info = await self._requests.api(f"STREAM.INFO.{stream}")
        return int(info["state"]["messages"])

    async def subject_counts(self, stream: str, subjects: str) -> dict[str, int]:
        """Count the stored messages by subject, among those that match the filter `subjects`."""
        counts: dict[str, int] = {}
        read = 0  # not `len(counts)`: subjects that are no UTF-8 come as one and the same text
        while True:
            info = await self._requests.api(
                f"STREAM.INFO.{stream}", {"subjects_filter": subjects, "offset": read}
            )
            page = info["state"].get("subjects") or {}
            counts |= page
            read += len(page)
            if not page or read >= info.get("total", 0):
                return counts


def _model_of(consumer: str) -> str | None:
    try:
        return model_of_token(consumer.rpartition("-")[0])
    except InvalidInput:
        return None  # a stranger's


def _header_map(raw: bytes) -> dict[str, str]:
    """Parse a header block: a version line, then `name: value` lines."""
    lines = raw.decode("utf-8", "replace").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if line)
    return {name: value.strip() for name, _, value in pairs}
