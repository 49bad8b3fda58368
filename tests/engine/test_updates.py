"""Updates run when their gradients are there and the norm is known, the next forward's first need first."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from slideformer.engine.updates import StepUpdates, Updates
from slideformer.errors import NonFinite, WorkerFailed
from slideformer.memory.gradients import HostGradient
from slideformer.optim.adamw import AdamWStep
from slideformer.streams import Lanes, Worker, inline_lanes


class Landing:
    """A fence that passes when it is told to, or when somebody waits for it."""

    def __init__(self, passed: bool = True):
        self.passed = passed

    def done(self) -> bool:
        return self.passed

    def wait(self) -> None:
        self.passed = True


class SteppedWorker:
    """A worker that works only when told."""

    def __init__(self, name: str, work: Callable[[], bool]):
        self.work = work

    def kick(self) -> None:
        pass

    def check(self) -> None:
        pass

    def wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            assert self.work(), "nothing left to do"

    def close(self) -> None:
        pass


class RecordsOnTheirWay:
    """States on disk, some of which have not arrived; a log of what was expected."""

    holds_any = True

    def __init__(self):
        self.coming: set[str] = set()
        self.expected: list[list[str]] = []

    def expect(self, units: Sequence[str]) -> None:
        self.expected.append(list(units))

    def ready(self, unit: str) -> bool:
        return unit not in self.coming


class Queue:
    """Updates on a worker that is stepped by hand, with a log of what was applied with which gradient scale."""

    def __init__(self, max_norm: float | None = None):
        inline = inline_lanes(torch.device("cpu"))

        def start_worker(name: str, work: Callable[[], bool]) -> Worker:
            return SteppedWorker(name, work)

        self.records, self.skipped = RecordsOnTheirWay(), list[str]()
        lanes = Lanes(inline.device, inline.compute, inline.h2d, inline.d2h, inline.update, start_worker)
        self.updates = Updates(lanes, self.records, self.skipped.append)
        self.step = self.new_step(1, max_norm)
        self.applied: list[tuple[str, float]] = []
        self.released = 0

    def new_step(self, number: int, max_norm: float | None = None, skip: bool = False) -> StepUpdates:
        return StepUpdates(AdamWStep(1e-3, 0.9, 0.99, 1e-8, 0.0, number), max_norm, skip)

    def submit(
        self, unit: str, next_use: int, squares: list[float] | None = None, landed: bool = True, step: Any = None
    ) -> list[Landing]:
        fences = [Landing(landed) for _ in squares or []]
        gradients = [
            HostGradient(torch.zeros(1), torch.tensor(square), torch.tensor(square), fence, self._release)
            for square, fence in zip(squares or [], fences, strict=True)
        ]

        def apply(hyper: AdamWStep) -> None:
            self.applied.append((unit, hyper.grad_scale))

        self.updates.submit(step or self.step, unit, next_use, gradients, apply)
        return fences

    def work(self) -> bool:
        return self.updates._work()

    @property
    def order(self) -> list[str]:
        return [unit for unit, _ in self.applied]

    def _release(self) -> None:
        self.released += 1


def test_what_the_next_forward_needs_first_is_updated_first():
    queue = Queue()
    for unit, use in (("head", 3), ("layer 2", 2), ("layer 1", 1), ("embedding", -1)):
        queue.submit(unit, use, [1.0])
    while queue.work():
        pass
    assert queue.order == ["embedding", "layer 1", "layer 2", "head"] and queue.released == 4


def test_a_state_on_its_way_from_the_disk_comes_behind_those_that_are_there():
    queue = Queue()
    for unit, use in (("layer 2", 2), ("layer 1", 1), ("layer 0", 0)):
        queue.submit(unit, use, [1.0])
    queue.records.coming = {"layer 0", "layer 1"}
    assert queue.work() and queue.order == ["layer 2"]
    assert queue.work() and queue.order == ["layer 2", "layer 0"]  # none is there: the first to be needed
    queue.records.coming = set()
    assert queue.work() and queue.order == ["layer 2", "layer 0", "layer 1"]


def test_states_are_expected_in_the_order_of_their_updates():
    queue = Queue()
    queue.submit("layer 2", 2, [1.0])
    queue.submit("layer 1", 1, [1.0])
    queue.submit("layer 0", 0, [1.0], landed=False)
    assert queue.records.expected[-1] == ["layer 1", "layer 2", "layer 0"]


def test_clipped_states_are_expected_once_the_norm_can_be_known_in_the_order_of_their_updates():
    queue = Queue(max_norm=1.0)
    for unit, use in (("layer 2", 2), ("layer 1", 1), ("layer 0", 0)):
        queue.submit(unit, use, [1.0], landed=False)
    assert queue.records.expected[-1] == []
    queue.updates.close(queue.step)
    assert queue.work() and queue.records.expected[-1] == ["layer 0", "layer 1", "layer 2"]


def test_a_gradient_that_has_landed_goes_before_one_that_has_not():
    queue = Queue()
    (late,) = queue.submit("layer 0", 0, [1.0], landed=False)
    queue.submit("layer 2", 2, [1.0])
    assert queue.work() and queue.order == ["layer 2"]
    queue.submit("layer 3", 3, [1.0])
    late.passed = True
    assert queue.work() and queue.order == ["layer 2", "layer 0"]


def test_when_none_has_landed_the_oldest_is_waited_for():
    queue = Queue()
    queue.submit("layer 2", 2, [1.0], landed=False)
    queue.submit("layer 1", 1, [1.0], landed=False)
    assert queue.work() and queue.order == ["layer 2"]


def test_a_unit_is_fresh_when_its_last_update_has_run():
    queue = Queue()
    assert queue.updates.fresh("embedding")
    queue.submit("embedding", -1)
    queue.submit("embedding", -1, [1.0])
    for expected in (False, False, True):
        assert queue.updates.fresh("embedding") == expected
        queue.work()
    queue.submit("embedding", -1)
    queue.updates.wait_fresh("embedding")
    assert queue.updates.fresh("embedding") and len(queue.order) == 3


def test_with_clipping_nothing_runs_before_the_last_gradient_is_submitted():
    queue = Queue(max_norm=1.0)
    queue.submit("layer 1", 1, [9.0])
    queue.submit("layer 0", 0, [7.0])
    assert not queue.work()
    queue.updates.close(queue.step)
    while queue.work():
        pass
    scale = 1.0 / (4.0 + 1e-6)
    assert queue.applied == [("layer 0", scale), ("layer 1", scale)]


@pytest.mark.parametrize("max_norm", [None, 100.0, 4.0])
def test_a_norm_within_the_limit_scales_nothing(max_norm: float | None):
    queue = Queue(max_norm)
    queue.submit("layer 0", 0, [9.0, 2.0])
    queue.submit("layer 1", 1, [4.999])
    queue.updates.close(queue.step)
    queue.updates.wait_done(queue.step)
    assert {scale for _, scale in queue.applied} == {1.0}
    assert queue.step.norm == pytest.approx(math.sqrt(15.999))


def test_the_norm_does_not_depend_on_the_order_of_arrival():
    squares = [1e8, 1e-8, 3e7, 1.0 / 3, 1e-3, 7e5]

    def norm(order: list[int]) -> float:
        queue = Queue()
        for k in range(len(squares)):
            queue.submit(f"layer {k}", order[k], [squares[k]])
        queue.updates.close(queue.step)
        queue.updates.wait_done(queue.step)
        assert queue.step.norm is not None
        return queue.step.norm

    assert norm([0, 1, 2, 3, 4, 5]) == norm([5, 4, 3, 2, 1, 0]) == norm([2, 0, 5, 1, 4, 3])


def test_a_step_is_done_when_it_is_closed_and_all_has_run():
    queue = Queue()
    queue.submit("layer 0", 0, [1.0])
    queue.work()
    assert not queue.step.done
    queue.updates.close(queue.step)
    assert queue.step.done and queue.step.norm is None
    queue.updates.wait_done(queue.step)
    assert queue.step.norm == 1.0


@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_names_step_and_unit_and_changes_nothing(max_norm: float | None, bad: float):
    queue = Queue(max_norm)
    queue.submit("layer 4", 4, [1.0, bad])
    queue.updates.close(queue.step)
    with pytest.raises(NonFinite, match="step 1: the gradient of layer 4 is not finite") as caught:
        queue.work()
    assert caught.value.step == 1 and queue.applied == [] and not queue.updates.fresh("layer 4")


def test_with_clipping_one_bad_gradient_stops_every_update():
    queue = Queue(max_norm=1.0)
    queue.submit("layer 0", 0, [1.0])
    queue.submit("layer 1", 1, [math.nan])
    queue.updates.close(queue.step)
    with pytest.raises(NonFinite, match="layer 1"):
        queue.work()
    assert queue.applied == []


def test_a_step_that_is_not_finite_is_left_out_as_a_whole_where_that_is_asked_for():
    queue = Queue()
    step = queue.new_step(1, max_norm=1.0, skip=True)
    for unit, squares in (("layer 1", [1.0]), ("embedding", [math.inf]), ("layer 0", [math.nan]), ("embedding", [1.0])):
        queue.submit(unit, 0, squares, step=step)
    queue.updates.close(step)
    queue.updates.wait_done(step)
    assert queue.applied == [] and queue.released == 4 and queue.updates.fresh("embedding")
    assert step.non_finite == ["embedding", "layer 0"] and step.norm is not None and math.isnan(step.norm)
    assert sorted(queue.skipped) == ["embedding", "layer 0", "layer 1"]  # each once, however many updates it had
    after = queue.new_step(2, max_norm=1.0, skip=True)
    queue.submit("layer 0", 0, [0.25], step=after)
    queue.updates.close(after)
    queue.updates.wait_done(after)
    assert queue.order == ["layer 0"] and after.non_finite == [] and after.norm == 0.5


def test_an_update_that_raises_names_step_and_unit():
    queue = Queue()

    def apply(hyper: AdamWStep) -> None:
        raise MemoryError("none left")

    queue.updates.submit(queue.step, "layer 7", 7, [], apply)
    with pytest.raises(WorkerFailed, match="step 1: the update of layer 7 failed: MemoryError: none left") as caught:
        queue.work()
    assert isinstance(caught.value.__cause__, MemoryError) and "last saved model" in caught.value.hint


def test_updates_of_two_steps_keep_apart():
    queue = Queue(max_norm=1.0)
    queue.submit("layer 1", 1, [100.0])
    queue.updates.close(queue.step)
    second = queue.new_step(2, max_norm=1.0)
    queue.submit("layer 0", 0, [1e4], step=second)  # needed first, but its norm is not known yet
    assert queue.work() and queue.applied == [("layer 1", 1.0 / (10 + 1e-6))]
    assert not queue.work()
    queue.updates.close(second)
    assert queue.work() and queue.applied[1:] == [("layer 0", 1.0 / (100 + 1e-6))]
    assert queue.step.norm == 10 and second.norm == 100


def test_time_spent_is_counted():
    queue = Queue()
    queue.submit("layer 0", 0, [1.0])
    queue.work()
    assert 0 < queue.step.busy_seconds < 1
