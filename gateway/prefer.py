"""The `Prefer` header (RFC 7240): whether a caller waits for its answer, or comes back for it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

MAX_WAIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Preference:
    """`wait_s` is how long to wait before a 202; None is for as long as the deadline allows."""

    respond_async: bool = False
    wait_s: float | None = None

    @property
    def as_job(self) -> bool:
        """Say whether the request must survive this connection, because it may be answered by a 202."""
        return self.respond_async or self.wait_s is not None

    @property
    def applied(self) -> str:
        """What `Preference-Applied` says."""
        if self.wait_s is None:
            return "respond-async"
        wait = f"wait={self.wait_s:g}"
        return f"respond-async, {wait}" if self.respond_async else wait


def read_preference(values: Iterable[str]) -> Preference:
    """Read every `Prefer` header. What we do not understand is ignored, as the RFC wants it."""
    respond_async, wait_s = False, None
    for preference in ",".join(values).split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        match name.strip().lower():
            case "respond-async":
                respond_async = True
            case "wait" if wait_s is None:  # the first counts
                wait_s = _seconds(value.strip().strip('"'))
    return Preference(respond_async, wait_s)


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return min(seconds, MAX_WAIT_S) if math.isfinite(seconds) and seconds >= 0 else None
