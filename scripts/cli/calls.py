"""Calls to the gateway: one client, and every failure turned into an exit code and a line for people."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from pydantic import ValidationError

from schemas.api import Problem
from scripts.cli.exits import Exit, Stop
from scripts.cli.target import Target

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 60.0


@contextmanager
def calling(
    target: Target, *, timeout_s: float = ANSWER_TIMEOUT_S, transport: httpx.BaseTransport | None = None
) -> Iterator[httpx.Client]:
    """Open a client for the block. Raises Stop for whatever keeps an answer from arriving.

    `timeout_s` is how long the gateway may stay silent.
    """
    headers = {"Authorization": f"Bearer {target.api_key}"} if target.api_key else {}
    timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
    try:
        with httpx.Client(
            base_url=target.url, headers=headers, timeout=timeout, transport=transport
        ) as client:
            yield client
    except httpx.ConnectError as error:
        raise Stop(Exit.NO_CONNECTION, f"cannot connect to {target.url}: {error}") from error
    except httpx.InvalidURL as error:
        raise Stop(Exit.USAGE, f"{target.url} is not an address: {error}") from error
    except httpx.TimeoutException as error:
        raise Stop(Exit.NO_CONNECTION, f"{target.url} did not answer in time") from error
    except httpx.TransportError as error:
        raise Stop(Exit.NO_CONNECTION, f"lost the connection to {target.url}: {error}") from error


def answer_of(response: httpx.Response) -> Any:
    """Return the JSON of a good answer. Raises Stop for an error, or for what is no JSON."""
    check(response)
    try:
        return response.json()
    except ValueError as error:
        raise Stop(Exit.REFUSED, f"{response.url} did not answer with JSON; is this the gateway?") from error


def check(response: httpx.Response) -> None:
    """Raise Stop if the gateway refused; reads the body of a streamed answer then."""
    if response.is_success:
        return
    response.read()
    raise Stop(Exit.REFUSED, describe_refusal(response))


def describe_refusal(response: httpx.Response) -> str:
    """Say why the gateway refused, with the request id that its logs know."""
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        return f"HTTP {response.status_code} {response.reason_phrase} from {response.url}"
    lines = [f"{problem.detail} ({problem.code}, HTTP {problem.status})"]
    if problem.field:
        lines.append(f"  field: {problem.field}")
    if retry_after := response.headers.get("retry-after"):
        lines.append(f"  try again in: {retry_after} s")
    return "\n".join([*lines, f"  request id: {problem.request_id}"])
