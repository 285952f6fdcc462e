"""Every subject, stream and consumer name, and the only place where names become subject tokens.

A model name may hold `.` and `/`, which mean something else in a subject; they travel as `~2E` and
`~2F`. The escape is reversible because `~` is not allowed in a name. Inputs are checked against one
allow-list a kind, so nothing a caller writes can address a foreign subject.
"""

import re
from enum import StrEnum

from schemas.errors import InvalidInput

INFER_STREAM = "INFER"
LIVE_STREAM = "INFER_LIVE"
JOBS_STREAM = "JOBS"
RESULTS_STREAM = "RESULTS"
DEAD_STREAM = "DEAD"
ATTEMPTS_STREAM = "ATTEMPTS"
ADVISORIES_STREAM = "ADVISORIES"
ADVISORY_CONSUMER = "dead-letters"  # of ADVISORIES; whoever ends what was given up

MODEL_NAME = re.compile(r"(?:[a-zA-Z0-9][a-zA-Z0-9._-]{0,127}/)?[a-zA-Z0-9][a-zA-Z0-9._-]{0,127}")
TENANT_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
JOB_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{15,63}")
MAX_TOKEN_CHARS = 240  # with the lane it names a consumer, for which the server takes 255
_REPLY_SUBJECT = re.compile(r"_INBOX_(?:gateway|publisher)(?:\.[A-Za-z0-9_-]{1,64}){1,6}")
_TOKEN = re.compile(r"[A-Za-z0-9_~-]+")


class Lane(StrEnum):
    """How a request is served: who waits for it, and how it is stored."""

    LIVE = "live"  # a caller waits on a connection; memory storage
    INTERACTIVE = "interactive"  # accepted work that somebody looks for soon; file storage
    BATCH = "batch"  # accepted work that nobody waits for; file storage

    @property
    def stream(self) -> str:
        """The stream that stores this lane."""
        return LIVE_STREAM if self is Lane.LIVE else INFER_STREAM


_LANES = frozenset(str(lane) for lane in Lane)


def check_model_name(name: str, *, field: str = "model") -> str:
    """Return `name` if it is allowed. Raises InvalidInput, which does not repeat a hostile name."""
    if len(name) > 257 or not MODEL_NAME.fullmatch(name) or ".." in name:
        raise InvalidInput(
            "must be letters, digits, '.', '_' or '-', starting with a letter or digit, at most 128 "
            "characters, optionally as 'org/name'",
            field=field,
        )
    if len(model_token(name)) > MAX_TOKEN_CHARS:
        raise InvalidInput(
            f"is longer than {MAX_TOKEN_CHARS} characters, each '.' and '/' counted as 3", field=field
        )
    return name


def check_job_id(job: str, *, field: str = "job") -> str:
    """Return `job` if it can be a job id. Raises InvalidInput."""
    if not JOB_ID.fullmatch(job):
        raise InvalidInput("must be 16 to 64 letters, digits, '_' or '-'", field=field)
    return job


def check_tenant(tenant: str, *, field: str = "tenant") -> str:
    """Return `tenant` if it is allowed. Raises InvalidInput."""
    if not TENANT_NAME.fullmatch(tenant):
        raise InvalidInput("must be 1 to 63 lower-case letters, digits or '-'", field=field)
    return tenant


def is_reply_subject(subject: str) -> bool:
    """Say whether a worker may publish a reply to `subject`.

    Only inboxes of the gateway and of publishers qualify, so a forged reply-to can not make a worker
    publish work, acks or API calls.
    """
    return _REPLY_SUBJECT.fullmatch(subject) is not None


def model_token(model: str) -> str:
    """Turn a checked model name into one subject token."""
    return model.replace(".", "~2E").replace("/", "~2F")


def model_of_token(token: str) -> str:
    """Undo `model_token`. Raises InvalidInput on a token that no allowed name makes."""
    if not _TOKEN.fullmatch(token):
        raise InvalidInput("is not an escaped model name", field="subject")
    return check_model_name(token.replace("~2E", ".").replace("~2F", "/"), field="subject")


def infer_subject(model: str, lane: Lane) -> str:
    """Where a request for `model` is published."""
    return f"infer.{model_token(model)}.{lane}"


def parse_infer_subject(subject: str) -> tuple[str, Lane]:
    """Return the model and lane of a delivery. Raises InvalidInput on anything else."""
    parts = subject.split(".")
    if len(parts) != 3 or parts[0] != "infer" or parts[2] not in _LANES:
        raise InvalidInput("is not infer.<model>.<lane>", field="subject")
    return model_of_token(parts[1]), Lane(parts[2])


def consumer_name(model: str, lane: Lane) -> str:
    """The durable consumer that serves `model` on `lane`."""
    return f"{model_token(model)}-{lane}"


def job_subject(tenant: str, job: str) -> str:
    """Where the record of what a job is lives."""
    return f"job.{tenant}.{job}"


def cancel_subject(tenant: str, job: str) -> str:
    """Where the mark that a job is cancelled lives."""
    return f"cancel.{tenant}.{job}"


def abort_subject(request_id: str) -> str:
    """Where workers hear that nobody waits for a live request any more; `*` names all of them."""
    return f"abort.{request_id}"


def webhook_subject(tenant: str, job: str) -> str:
    """Where it is kept how far telling the webhook of a job has come."""
    return f"webhook.{tenant}.{job}"


def result_subject(tenant: str, job: str, item: int | str) -> str:
    """Where the terminal record of one item of a job lives; `*` names all of them."""
    return f"result.{tenant}.{job}.{item}"


def attempt_subject(tenant: str, job: str, item: int) -> str:
    """Where the attempts at one item of a job, beyond its first, are recorded."""
    return f"attempt.{tenant}.{job}.{item}"


def dead_subject(model: str) -> str:
    """Where dead letters of a model go. Takes a token, not a name: dead letters may have bad names."""
    return f"dead.{model_token(model)}"
