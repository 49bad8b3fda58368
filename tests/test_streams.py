"""Lanes of the host run at once; the worker thread surfaces its errors and never leaves its caller waiting."""

import sys
import threading
import time

import pytest
import torch

from slideformer.errors import EngineFailed, SlideFormerError, WorkerFailed
from slideformer.streams import SWITCH_SECONDS, EventFence, ThreadWorker, inline_lanes, lanes_for

pytestmark = pytest.mark.timeout(30)


def test_an_inline_lane_runs_at_once_and_its_fences_have_passed():
    lanes = inline_lanes(torch.device("cpu"))
    out: list[int] = []
    assert lanes.compute.run(lambda a, b: a + b, 1, 2) == 3
    lanes.h2d.run(out.append, 5)
    assert out == [5]
    fence = lanes.d2h.record()
    lanes.compute.wait(fence)
    fence.wait()
    assert fence.done()


def test_new_memory_has_the_asked_shape():
    memory = lanes_for(torch.device("cpu")).empty((2, 3), torch.bfloat16)
    assert memory.shape == (2, 3) and memory.dtype == torch.bfloat16 and memory.device.type == "cpu"


class Jobs:
    """Work for a worker: each unit takes one job off the list and does it."""

    def __init__(self) -> None:
        self.todo: list[object] = []
        self.done: list[object] = []
        self.may_run = threading.Event()
        self.may_run.set()

    def __call__(self) -> bool:
        if not self.todo:
            return False
        self.may_run.wait()
        job = self.todo.pop(0)
        if isinstance(job, BaseException):
            raise job
        self.done.append(job)
        return True


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


def test_a_worker_sleeps_until_kicked_and_works_until_nothing_is_left(jobs: Jobs):
    worker = ThreadWorker("w", jobs)
    jobs.todo = [1, 2, 3]
    time.sleep(0.02)
    assert jobs.done == []
    worker.kick()
    worker.wait_until(lambda: len(jobs.done) == 3)
    jobs.todo.append(4)
    worker.kick()
    worker.wait_until(lambda: len(jobs.done) == 4)
    assert jobs.done == [1, 2, 3, 4]
    worker.close()


def test_a_kick_while_it_works_is_not_lost(jobs: Jobs):
    worker = ThreadWorker("w", jobs)
    for k in range(200):
        jobs.todo.append(k)
        worker.kick()
        worker.wait_until(lambda count=k + 1: len(jobs.done) == count)
    worker.close()


def test_an_exception_reaches_who_waits_with_its_cause(jobs: Jobs):
    worker = ThreadWorker("optimizer", jobs)
    jobs.todo = [1, ValueError("boom"), 2]
    worker.kick()
    with pytest.raises(WorkerFailed, match="the worker 'optimizer' failed: ValueError: boom") as caught:
        worker.wait_until(lambda: len(jobs.done) == 2)
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(WorkerFailed):  # and whoever asks later
        worker.check()
    with pytest.raises(WorkerFailed):
        worker.wait_until(lambda: True)
    assert jobs.done == [1]
    worker.close()


def test_an_error_of_the_project_arrives_as_itself(jobs: Jobs):
    worker = ThreadWorker("w", jobs)
    jobs.todo = [EngineFailed("layer 3", "start again")]
    worker.kick()
    with pytest.raises(EngineFailed, match="layer 3"):
        worker.wait_until(lambda: False)
    worker.close()


def test_closing_wakes_who_waits(jobs: Jobs):
    worker = ThreadWorker("w", jobs)
    seen: list[SlideFormerError] = []

    def wait() -> None:
        try:
            worker.wait_until(lambda: False)
        except SlideFormerError as error:
            seen.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.02)
    worker.close()
    waiter.join()
    assert "'w' was closed while its result was awaited" in str(seen[0])


def test_closing_finishes_the_unit_at_work_and_starts_no_other(jobs: Jobs):
    jobs.may_run.clear()
    jobs.todo = [1, 2]
    worker = ThreadWorker("w", jobs)
    worker.kick()
    threading.Timer(0.05, jobs.may_run.set).start()
    worker.close()
    assert jobs.done == [1]
    worker.check()


def test_a_worker_that_was_never_kicked_has_no_thread(jobs: Jobs):
    before = threading.active_count()
    worker = ThreadWorker("w", jobs)
    assert threading.active_count() == before
    worker.close()
    worker.kick()
    assert threading.active_count() == before and jobs.done == []


def test_closing_twice_is_fine(jobs: Jobs):
    worker = ThreadWorker("w", jobs)
    worker.close()
    worker.close()


def test_a_fence_asks_its_event_until_it_is_done_and_then_no_more():
    class Event:
        asked, answers = 0, [False, False, True]

        def query(self) -> bool:
            self.asked += 1
            return self.answers[self.asked - 1]

        def synchronize(self) -> None:
            raise AssertionError("it is known to be done")

    event = Event()
    fence = EventFence(event)  # type: ignore[arg-type]
    assert [fence.done() for _ in range(5)] == [False, False, True, True, True]
    fence.wait()
    assert event.asked == 3


@pytest.mark.gpu
def test_accelerator_lanes_order_copies_by_fences():
    lanes = lanes_for(torch.device("cuda"))
    assert sys.getswitchinterval() <= SWITCH_SECONDS
    source = torch.zeros(1 << 24, device="cuda")
    target = torch.empty(1 << 24, pin_memory=True)
    for value in range(1, 6):
        lanes.compute.run(source.fill_, value)
        lanes.d2h.wait(lanes.compute.record())
        lanes.d2h.run(lambda: target.copy_(source, non_blocking=True))
        landed = lanes.d2h.record()
        lanes.compute.wait(landed)
        landed.wait()
        assert landed.done() and bool((target == value).all())
