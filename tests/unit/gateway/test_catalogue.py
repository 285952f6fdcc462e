"""The catalogue: what it knows when Redis answers, and when it does not."""

import pytest

from gateway.catalogue import Catalogue
from schemas.errors import InvalidInput, Unavailable, UnknownModel
from schemas.models import ModelCard
from schemas.placement import BacklogReport, WorkerState, WorkerStatus
from schemas.subjects import Lane
from tests.unit.gateway.builders import a_card


class Placement:
    """Placement in memory. `down` makes it raise, `reads` counts."""

    def __init__(self, *cards: ModelCard) -> None:
        self.models = {card.name: card for card in cards}
        self.heartbeats: list[WorkerStatus] = []
        self.reports: list[BacklogReport] = []
        self.down = False
        self.reads = 0

    async def cards(self) -> dict[str, ModelCard]:
        self.reads += 1
        if self.down:
            raise Unavailable("redis is gone")
        return dict(self.models)

    async def workers(self) -> list[WorkerStatus]:
        return self.heartbeats

    async def backlog(self) -> list[BacklogReport]:
        return self.reports


def a_worker(*models: str, state: WorkerState = WorkerState.READY) -> WorkerStatus:
    return WorkerStatus(worker="w", state=state, models=models)


async def test_a_known_model_is_answered_without_asking_redis_again() -> None:
    placement = Placement(a_card("m"))
    catalogue = Catalogue(placement)
    await catalogue.refresh()
    assert [(await catalogue.card("m")).name for _ in range(3)] == ["m"] * 3
    assert placement.reads == 1


async def test_a_model_announced_just_now_is_found_by_one_early_refresh() -> None:
    placement = Placement()
    catalogue = Catalogue(placement)
    placement.models["new"] = a_card("new")
    assert (await catalogue.card("new")).name == "new"


async def test_unknown_models_do_not_make_a_storm_of_refreshes() -> None:
    placement = Placement()
    catalogue = Catalogue(placement)
    for i in range(20):
        with pytest.raises(UnknownModel):
            await catalogue.card(f"m{i}")
    assert placement.reads == 1


async def test_what_was_known_stays_while_redis_is_gone() -> None:
    placement = Placement(a_card("m"))
    catalogue = Catalogue(placement)
    await catalogue.refresh()
    placement.down = True
    await catalogue.refresh()
    assert (await catalogue.card("m")).name == "m"
    assert not catalogue.reachable


async def test_a_redis_that_comes_back_empty_unlearns_nothing() -> None:
    placement = Placement(a_card("m"))
    catalogue = Catalogue(placement)
    await catalogue.refresh()
    placement.models.clear()
    await catalogue.refresh()
    assert (await catalogue.card("m")).name == "m"


async def test_a_model_is_not_called_unknown_before_redis_was_read_once() -> None:
    placement = Placement()
    placement.down = True
    with pytest.raises(Unavailable):
        await Catalogue(placement).card("m")


async def test_another_version_is_unknown_and_the_one_that_exists_is_named() -> None:
    catalogue = Catalogue(Placement(a_card("m", version=4)))
    assert (await catalogue.card("m", 4)).version == 4
    with pytest.raises(UnknownModel, match="has version 4, not version 3"):
        await catalogue.card("m", 3)


@pytest.mark.parametrize(
    "name",
    ["", " ", "*", ">", "a b", "..", "../../etc/passwd", "a/b/c", "a\n", "ä", "x" * 300, "$JS.API", "a\0b"],
)
async def test_a_hostile_name_is_refused_before_anything_else(name: str) -> None:
    placement = Placement()
    with pytest.raises(InvalidInput):
        await Catalogue(placement).card(name)
    assert placement.reads == 0


async def test_a_model_is_ready_only_where_a_worker_that_is_ready_holds_it() -> None:
    placement = Placement(a_card("a"), a_card("b"), a_card("c"))
    placement.heartbeats = [a_worker("a"), a_worker("a", "b"), a_worker("c", state=WorkerState.DRAINING)]
    catalogue = Catalogue(placement)
    await catalogue.refresh()
    assert catalogue.models_ready() == ["a", "b"]
    assert [(m.name, m.ready, m.workers) for m in catalogue.models()] == [
        ("a", True, 2),
        ("b", True, 1),
        ("c", False, 0),
    ]


async def test_a_backlog_is_known_while_redis_answers() -> None:
    placement = Placement(a_card("m"))
    placement.reports = [BacklogReport(model="m", lane=Lane.BATCH, waiting=7, per_s=2.0)]
    catalogue = Catalogue(placement)
    await catalogue.refresh()
    assert catalogue.backlog("m", Lane.BATCH) == placement.reports[0]
    assert catalogue.backlog("m", Lane.LIVE) is None
    placement.down = True
    await catalogue.refresh()
    assert catalogue.backlog("m", Lane.BATCH) is None
