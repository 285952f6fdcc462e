"""Publishes many messages with many PubAcks in flight, in bounded memory, and loses none silently."""

import asyncio
from collections import deque
from dataclasses import dataclass
from itertools import chain, repeat

from gateway.acks import check_stored
from infra.connections.requests import Question, Requests, read_pub_ack
from schemas.errors import Overloaded, Unavailable

MAX_UNANSWERED_BYTES = 32 << 20
_DELAYS_S = (0.0, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Message:
    """One message for a stream. Its headers hold an id, so publishing it twice stores it once."""

    subject: str
    headers: dict[str, str]
    body: bytes


class Pipeline:
    """At most `window` messages, and MAX_UNANSWERED_BYTES, are on their way at any time.

    A message that is refused for want of room, or whose fate is unknown, is tried again for up to
    `patience_s`; meanwhile nothing else is published, so the caller is slowed down to what the queue takes.
    """

    def __init__(
        self, requests: Requests, *, window: int, ack_timeout_s: float, patience_s: float = 0.0
    ) -> None:
        self._requests = requests
        self._window = window
        self._ack_timeout_s = ack_timeout_s
        self._patience_s = patience_s
        self._unanswered: deque[tuple[Message, Question]] = deque()
        self._unanswered_bytes = 0

    async def add(self, message: Message) -> None:
        """Publish, awaiting the oldest PubAck if the window is full. Raises as `finish` does."""
        while len(self._unanswered) >= self._window or self._unanswered_bytes > MAX_UNANSWERED_BYTES:
            await self._settle_oldest()
        try:
            question = await self._begin(message)
        except Unavailable as error:
            await self._try_again(message, error)
        else:
            self._unanswered.append((message, question))
            self._unanswered_bytes += len(message.body)

    async def finish(self) -> None:
        """Return when every message is stored. Raises Overloaded, Unavailable or TooLarge."""
        while self._unanswered:
            await self._settle_oldest()

    def abandon(self) -> None:
        """Wait for no more PubAcks."""
        for _, question in self._unanswered:
            self._requests.forget(question)
            question.answer.cancel()
        self._unanswered.clear()

    async def _begin(self, message: Message) -> Question:
        return await self._requests.begin(message.subject, message.body, message.headers)

    async def _settle_oldest(self) -> None:
        message, question = self._unanswered.popleft()
        self._unanswered_bytes -= len(message.body)
        try:
            await self._check(question)
        except (Overloaded, Unavailable) as error:
            await self._try_again(message, error)

    async def _check(self, question: Question) -> None:
        try:
            async with asyncio.timeout(self._ack_timeout_s):
                answer = await question.answer
        except TimeoutError as error:
            raise Unavailable("the queue did not answer in time", retry_after_s=2) from error
        finally:
            self._requests.forget(question)
        check_stored(read_pub_ack(answer))

    async def _try_again(self, message: Message, error: Overloaded | Unavailable) -> None:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._patience_s
        for delay_s in chain(_DELAYS_S, repeat(_DELAYS_S[-1])):
            if loop.time() + delay_s >= give_up_at:
                raise error
            await asyncio.sleep(delay_s)
            try:
                await self._check(await self._begin(message))
                return
            except (Overloaded, Unavailable) as again:
                error = again
