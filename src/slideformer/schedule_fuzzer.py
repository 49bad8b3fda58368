"""Lanes whose work runs at any moment the fences allow, chosen by a seed: missing waits change the result.

All lanes are queues, compute too, so a copy can overtake the computation that still reads its target. A result used
before the fence behind it has passed is an error at once.
"""

import random
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from slideformer.errors import WorkerFailed
from slideformer.streams import Fence, Lanes, raise_worker_error


class Deferred:
    """The result of work that has not run yet."""

    def __init__(self, lane: str):
        self.lane = lane
        self.ran = False
        self.value: Any = None


def resolve(argument: Any) -> Any:
    if not isinstance(argument, Deferred):
        return argument
    if not argument.ran:
        raise RuntimeError(f"a result of the {argument.lane} lane was used before it was computed: a wait is missing")
    return argument.value


class QueuedFence:
    def __init__(self, scheduler: "Scheduler"):
        self._scheduler = scheduler
        self.passed = False

    def done(self) -> bool:
        return self.passed

    def wait(self) -> None:
        if not self._scheduler.ignores_wait():
            self._scheduler.run_until(lambda: self.passed)


class QueuedLane:
    """A FIFO of closures; `head_ready` says whether its first entry may run now."""

    def __init__(self, name: str, scheduler: "Scheduler"):
        self.name = name
        self._scheduler = scheduler
        self._queue: deque[tuple[Fence | None, Callable[[], None]]] = deque()

    def run(self, work: Callable[..., Any], *args: Any) -> Any:
        result = Deferred(self.name)

        def execute() -> None:
            result.value = work(*(resolve(argument) for argument in args))
            result.ran = True

        self._push(None, execute)
        return result

    def record(self) -> Fence:
        fence = QueuedFence(self._scheduler)
        self._push(None, lambda: setattr(fence, "passed", True))
        return fence

    def wait(self, fence: Fence) -> None:
        if not self._scheduler.ignores_wait():
            self._push(fence, lambda: None)

    def head_ready(self) -> bool:
        if not self._queue:
            return False
        fence = self._queue[0][0]
        return fence is None or fence.done()

    def step(self) -> None:
        self._queue.popleft()[1]()

    def _push(self, fence: Fence | None, work: Callable[[], None]) -> None:
        self._queue.append((fence, work))
        self._scheduler.wander()


class QueuedWorker:
    """A worker that runs one unit of work whenever the scheduler picks it."""

    def __init__(self, name: str, work: Callable[[], bool], scheduler: "Scheduler"):
        self.name = name
        self._work = work
        self._scheduler = scheduler
        self._idle = False
        self._busy = False
        self._error: BaseException | None = None

    def kick(self) -> None:
        self._idle = False

    def wait_until(self, condition: Callable[[], bool]) -> None:
        if not self._scheduler.ignores_wait():
            self._scheduler.run_until(lambda: condition() or self._error is not None)
        self.check()

    def check(self) -> None:
        raise_worker_error(self.name, self._error)

    def close(self) -> None:
        self._idle = True

    def head_ready(self) -> bool:
        return not (self._idle or self._busy or self._error)

    def step(self) -> None:
        self._busy = True
        try:
            self._idle = not self._work()
        except BaseException as error:
            self._error = error
        finally:
            self._busy = False


class Scheduler:
    """Picks which queue advances next. Each seed favours some queues and starves others.

    Args:
        seed: chooses the interleaving.
        ignored_wait: the place ("file.py:line", as listed in `wait_sites`) of one wait to leave out, to prove that a
            test notices.
    """

    def __init__(self, seed: int, ignored_wait: str | None = None):
        self._random = random.Random(seed)
        self._ignored_wait = ignored_wait
        self._queues: list[QueuedLane | QueuedWorker] = []
        self._weights: list[float] = []
        self.wait_sites: set[str] = set()

    def add(self, queue: Any) -> Any:
        self._queues.append(queue)
        self._weights.append(self._random.choice([0.01, 1.0, 100.0]))
        return queue

    def wander(self) -> None:
        """Run a few entries, or none, so that work may also happen early."""
        while self._random.random() < 0.5 and self._step():
            pass

    def run_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if not self._step():
                raise WorkerFailed("deadlock: the host waits for work that no lane can start")

    def ignores_wait(self) -> bool:
        site = _calling_site()
        self.wait_sites.add(site)
        return site == self._ignored_wait

    def _step(self) -> bool:
        ready = [k for k, queue in enumerate(self._queues) if queue.head_ready()]
        if not ready:
            return False
        chosen = self._random.choices(ready, [self._weights[k] for k in ready])[0]
        self._queues[chosen].step()
        return True


def _calling_site() -> str:
    """file.py:line of the engine's call to `Lane.wait`, `Fence.wait` or `Worker.wait_until`."""
    frame = sys._getframe(3)
    return f"{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno}"


def fuzzed_lanes(seed: int, ignored_wait: str | None = None) -> tuple[Lanes, Scheduler]:
    """CPU lanes whose interleaving is drawn from `seed`."""
    scheduler = Scheduler(seed, ignored_wait)
    compute, h2d, d2h = (scheduler.add(QueuedLane(name, scheduler)) for name in ("compute", "h2d", "d2h"))

    def start_worker(name: str, work: Callable[[], bool]) -> QueuedWorker:
        return scheduler.add(QueuedWorker(name, work, scheduler))

    return Lanes(torch.device("cpu"), compute, h2d, d2h, start_worker), scheduler
