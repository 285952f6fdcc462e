"""What the supervisor runs: a child's command line, environment, and how to know that it is ready."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

ReadyCheck = Callable[[], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One child process. Stages start one after the other; the children of a stage start together."""

    name: str
    role: str  # one of policy.STOP_ORDER
    command: Sequence[str]
    environment: Mapping[str, str]  # the whole of it
    stage: int
    is_ready: ReadyCheck  # may raise OSError, which means not yet
    ready_within_s: float = 60.0
    stop_grace_s: float = 10.0
    where: str = field(default="", compare=False)  # its address, for people
