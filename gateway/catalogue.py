"""Which models there are and who serves them, as last seen in Redis, which may be gone for a while."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import structlog

from schemas.api import ModelAnswer
from schemas.errors import Unavailable, UnknownModel
from schemas.models import ModelCard
from schemas.placement import BacklogReport, WorkerState, WorkerStatus
from schemas.subjects import Lane, check_model_name

log = structlog.get_logger()

REFRESH_S = 2.0
EARLY_REFRESH_S = 0.5


class PlacementReader(Protocol):
    """The part of placement that a gateway reads. All raise Unavailable."""

    async def cards(self) -> Mapping[str, ModelCard]: ...
    async def workers(self) -> list[WorkerStatus]: ...
    async def backlog(self) -> Sequence[BacklogReport]: ...


class Catalogue:
    """A copy of placement: a few seconds old at most while Redis answers, and kept while it does not."""

    def __init__(self, placement: PlacementReader) -> None:
        self._placement = placement
        self._cards: Mapping[str, ModelCard] = {}
        self._serving: Mapping[str, int] = {}
        self._backlog: Mapping[tuple[str, Lane], BacklogReport] = {}
        self._read_once = False
        self._last_tried = float("-inf")
        self._refreshing = asyncio.Lock()
        self.reachable = False

    async def keep_fresh(self) -> None:
        """Refresh until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(REFRESH_S)

    async def refresh(self) -> None:
        """Read placement now, or keep what is known if that is not possible."""
        async with self._refreshing:
            self._last_tried = time.monotonic()
            try:
                cards, workers = await self._placement.cards(), await self._placement.workers()
                reports = await self._placement.backlog()
            except Unavailable as error:
                self._backlog = {}  # it would be of long ago
                self._note_reachable(False, error.message)
                return
            # A Redis that was emptied unlearns nothing: its workers announce their models again.
            self._cards, self._serving = {**self._cards, **cards}, _serving(workers)
            self._backlog = {(report.model, report.lane): report for report in reports}
            self._read_once = True
            self._note_reachable(True)

    async def card(self, model: str, version: int | None = None) -> ModelCard:
        """Return a model's card. Raises InvalidInput on a hostile name, UnknownModel, and Unavailable if
        placement was never read, for then nobody knows which models there are.
        """
        check_model_name(model)
        card = self._cards.get(model)
        if card is None and time.monotonic() - self._last_tried >= EARLY_REFRESH_S:
            await self.refresh()
            card = self._cards.get(model)
        if card is None and not self._read_once:
            raise Unavailable("which models there are is not known yet", retry_after_s=2)
        if card is None:
            raise UnknownModel(f"there is no model {model!r}", field="model")
        if version is not None and version != card.version:
            raise UnknownModel(
                f"model {model!r} has version {card.version}, not version {version}", field="version"
            )
        return card

    def models(self) -> list[ModelAnswer]:
        """Describe every known model, by name."""
        return [self.describe(self._cards[name]) for name in sorted(self._cards)]

    def models_ready(self) -> list[str]:
        """Name the models that a worker serves now."""
        return sorted(name for name in self._cards if self._serving.get(name))

    def workers_of(self, model: str) -> int:
        """Count the workers that serve a model now."""
        return self._serving.get(model, 0)

    def backlog(self, model: str, lane: Lane) -> BacklogReport | None:
        """Return how far behind a lane is, as the scheduler measured it, or None if that is not known."""
        return self._backlog.get((model, lane))

    def describe(self, card: ModelCard) -> ModelAnswer:
        """Say what callers may know of a model."""
        workers = self._serving.get(card.name, 0)
        return ModelAnswer(
            name=card.name,
            version=card.version,
            format=card.format,
            description=card.description,
            ready=workers > 0,
            workers=workers,
            max_batch_size=card.max_batch_size,
            signature=card.signature,
        )

    def _note_reachable(self, now: bool, reason: str = "") -> None:
        if now and not self.reachable:
            log.info("placement read", models=len(self._cards))
        elif not now and (self.reachable or not self._read_once):
            log.warning("placement lost, keeping what is known", reason=reason, models=len(self._cards))
        self.reachable = now


def _serving(workers: list[WorkerStatus]) -> dict[str, int]:
    serving: dict[str, int] = {}
    for worker in workers:
        if worker.state is WorkerState.READY:
            for model in worker.models:
                serving[model] = serving.get(model, 0) + 1
    return serving
