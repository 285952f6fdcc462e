"""Running batches: one at a time, split when they fail, and each request answered and let go once."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from infra.connections.pulling import Delivery
from schemas.envelope import Result
from schemas.errors import DeadlineExceeded, InferenceError, ModelFailed, Unavailable
from schemas.headers import RequestHeaders
from schemas.subjects import Lane
from schemas.tensors import Tensor, from_array
from tests.waiting import until
from workers.answers import Answers
from workers.engines.base import Arrays, DeviceLost
from workers.intake import PreparedRequest
from workers.models import LoadedModel
from workers.runner import Runner


class Model:
    """A model that answers its input, and does before what the test wants."""

    def __init__(self, before: Callable[[Sequence[int]], object] = lambda _: None) -> None:
        self.name, self.version, self.max_batch_size, self.batch_timeout_ms = "m", 1, 4, 1.0
        self.config = SimpleNamespace(max_execution_s=10.0)
        self.before = before
        self.runs: list[list[int]] = []  # which requests ran together

    def shape_key(self, arrays: Arrays) -> Hashable:
        return arrays["x"].shape[1:]

    def run(self, batch: Sequence[Arrays]) -> list[Arrays]:
        numbers = [int(arrays["x"][0, 0]) for arrays in batch]
        self.runs.append(numbers)
        self.before(numbers)
        return list(batch)

    def finish(self, arrays: Arrays) -> tuple[Tensor, ...]:
        return (from_array("y", arrays["x"]),)


class RecordingAnswers:
    """What was answered, in place of answering."""

    def __init__(self) -> None:
        self.given: dict[str, Result | InferenceError] = {}
        self.starts: list[str] = []
        self.store_is_away = False

    async def answer(
        self, delivery: Delivery, headers: RequestHeaders, outcome: Result | InferenceError
    ) -> None:
        assert headers.id not in self.given, "answered twice"
        self.given[headers.id] = outcome

    async def note_start(self, delivery: Delivery, headers: RequestHeaders) -> None:
        if self.store_is_away:
            raise Unavailable("down")
        self.starts.append(headers.id)


class Bench:
    """A runner with its model, and what came out of it."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.answers = RecordingAnswers()
        self.cancelled: set[str] = set()
        self.released: list[str] = []
        self.runner = Runner(
            cast(LoadedModel, model),
            cast(Answers, self.answers),
            is_cancelled=lambda tenant, job: job in self.cancelled,
            more_coming=lambda: False,
            release=lambda request: self.released.append(request.headers.id),
        )

    def offer(self, *numbers: int, **keys: Any) -> None:
        for number in numbers:
            self.runner.offer(a_request(number, **keys))

    def outputs(self) -> dict[str, int]:
        """Map the id of each request with a result to the number in it."""
        results = {id_: one for id_, one in self.answers.given.items() if isinstance(one, Result)}
        return {id_: int(np.frombuffer(one.outputs[0].data, "<f4")[0]) for id_, one in results.items()}

    def errors(self) -> dict[str, type]:
        return {id_: type(one) for id_, one in self.answers.given.items() if not isinstance(one, Result)}


def a_request(
    number: int, *, attempt: int = 1, job: str | None = None, deadline_s: float | None = None
) -> PreparedRequest:
    delivery = Delivery("infer.m.batch", {}, b"", f"ack-{number}", "INFER", number, attempt, 0, 0)
    arrays = {"x": np.full((1, 2), number, dtype=np.float32)}
    return PreparedRequest(
        delivery=delivery,
        headers=RequestHeaders(id=str(number), job=job),
        lane=Lane.BATCH,
        arrays=arrays,
        items=1,
        size_bytes=8,
        delivered_s=time.monotonic(),
        queue_s=0.0,
        deadline_s=deadline_s,
    )


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[Bench]:
    """Run until everything that was offered is answered."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(bench.runner.run())
        yield bench
        bench.runner.drain()


async def test_everything_that_waits_is_run_in_batches_and_answered_before_draining_ends() -> None:
    bench = Bench(Model())
    bench.offer(*range(10))
    async with running(bench):
        pass
    assert bench.outputs() == {str(n): n for n in range(10)}
    assert [len(run) for run in bench.model.runs] == [4, 4, 2]
    assert sorted(bench.released, key=int) == [str(n) for n in range(10)]


async def test_what_is_offered_while_a_batch_runs_is_run_next() -> None:
    gate = threading.Event()
    bench = Bench(Model(lambda _: gate.wait(10)))
    async with running(bench):
        bench.offer(0)
        await until(lambda: bench.model.runs == [[0]], "the first run")
        bench.offer(1, 2, 3)
        gate.set()
    assert bench.model.runs == [[0], [1, 2, 3]]


def fail_on(*bad: int) -> Callable[[Sequence[int]], None]:
    def before(numbers: Sequence[int]) -> None:
        if set(bad) & set(numbers):
            raise ModelFailed("raised")

    return before


async def test_one_bad_request_fails_alone_and_every_further_start_is_noted() -> None:
    bench = Bench(Model(fail_on(2)))
    bench.offer(0, 1, 2, 3, 4)
    async with running(bench):
        pass
    assert bench.model.runs == [[0, 1, 2, 3], [0], [1], [2], [3], [4]]
    assert bench.outputs() == {"0": 0, "1": 1, "3": 3, "4": 4}
    assert bench.errors() == {"2": ModelFailed}
    assert bench.answers.starts == ["0", "1", "2", "3"]
    assert len(bench.released) == 5


async def test_a_request_that_was_alone_is_not_run_again() -> None:
    bench = Bench(Model(fail_on(7)))
    bench.offer(7)
    async with running(bench):
        pass
    assert bench.model.runs == [[7]]
    assert bench.errors() == {"7": ModelFailed}
    assert bench.answers.starts == []


async def test_nothing_is_started_that_can_not_be_noted() -> None:
    bench = Bench(Model(fail_on(1)))
    bench.answers.store_is_away = True
    bench.offer(0, 1)
    async with running(bench):
        pass
    assert bench.model.runs == [[0, 1]]
    assert bench.errors() == {"0": Unavailable, "1": Unavailable}


async def test_a_request_past_its_deadline_is_answered_and_not_run() -> None:
    bench = Bench(Model())
    bench.offer(1, deadline_s=time.monotonic() - 1)
    bench.offer(2, deadline_s=time.monotonic() + 60)
    async with running(bench):
        pass
    assert bench.model.runs == [[2]]
    assert bench.errors() == {"1": DeadlineExceeded}
    assert len(bench.released) == 2


async def test_a_request_of_a_cancelled_job_is_answered_and_not_run() -> None:
    bench = Bench(Model())
    bench.cancelled.add("gone")
    bench.offer(1, job="gone")
    bench.offer(2, job="kept")
    async with running(bench):
        pass
    assert bench.model.runs == [[2]]
    assert [error.__name__ for error in bench.errors().values()] == ["Cancelled"]


async def test_a_redelivered_request_runs_alone() -> None:
    bench = Bench(Model())
    bench.offer(0)
    bench.offer(1, attempt=2)
    bench.offer(2)
    async with running(bench):
        pass
    assert sorted(bench.model.runs) == [[0, 2], [1]]


async def test_the_runs_of_a_split_batch_are_each_held_against_the_time_of_one() -> None:
    gates = {0: threading.Event(), 1: threading.Event()}
    started: dict[int, float] = {}

    def before(numbers: Sequence[int]) -> None:
        if len(numbers) > 1:
            raise ModelFailed("raised")
        started[numbers[0]] = time.monotonic()
        gates[numbers[0]].wait(10)

    bench = Bench(Model(before))
    longest_s = bench.model.config.max_execution_s
    async with running(bench):
        assert not bench.runner.is_stuck(time.monotonic() + 1000)
        bench.offer(0, 1)
        await until(lambda: 0 in started, "the first to run alone")
        assert not bench.runner.is_stuck(started[0] + longest_s - 1)
        assert bench.runner.is_stuck(started[0] + longest_s + 0.001)
        gates[0].set()
        await until(lambda: 1 in started, "the second to run alone")
        between_s = (started[0] + started[1]) / 2
        assert not bench.runner.is_stuck(between_s + longest_s)
        assert bench.runner.is_stuck(started[1] + longest_s + 0.001)
        gates[1].set()
    assert not bench.runner.is_stuck(time.monotonic() + 1000)


async def test_a_run_that_never_ends_loses_the_device() -> None:
    gate = threading.Event()
    bench = Bench(Model(lambda _: gate.wait(10)))
    bench.model.config.max_execution_s = 0.05
    bench.offer(1)
    try:
        with pytest.raises(ExceptionGroup) as lost:
            await bench.runner.run()
    finally:
        gate.set()
    assert lost.group_contains(DeviceLost, match="'m' ran over its max_execution_s", depth=1)
    assert bench.answers.given == {}
