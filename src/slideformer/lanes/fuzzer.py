"""Lanes whose work runs at any moment the fences allow, chosen by a seed: missing waits change the result.

All lanes are queues, compute too, so a copy can overtake the computation that still reads its target. A result used
before the fence behind it has passed is an error at once.

Device memory behaves as under a caching allocator, which hands memory out in the order of the compute lane: new memory
may still be written by computation submitted before, and memory that the host lets go of is computation's from then on.
Both are played by overwriting it on the compute lane.
"""

import random
import sys
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from slideformer.errors import WorkerFailed
from slideformer.lanes.lanes import Fence, Lanes, raise_worker_error

FORWARDING = (
    "<lambda>",
    "wait_fresh",
    "wait_done",
    "wait_updated",
)  # functions that only pass on the wait of their caller


class Cell:
    """Where the result of work that may not have run yet will be."""

    def __init__(self, lane: str):
        self._lane = lane
        self._ran = False
        self._value: Any = None

    def write(self, value: Any) -> None:
        self._value = value.clone() if isinstance(value, Tensor) else value  # nothing else holds a clone's memory
        self._ran = True

    def read(self) -> Any:
        if not self._ran:
            raise RuntimeError(f"a result of the {self._lane} lane was used before it was computed: a wait is missing")
        return self._value

    def overwrite(self) -> None:
        """Its memory is used for something else."""
        if isinstance(self._value, Tensor):
            overwrite(self._value)


class Deferred:
    """The host's hold on a cell: when it goes, the result's memory goes back to the allocator."""

    def __init__(self, cell: Cell, dropped: list[Cell]):
        self.cell = cell
        self._dropped = dropped

    def __del__(self) -> None:
        self._dropped.append(self.cell)


def overwrite(memory: Tensor) -> None:
    memory.fill_(float("nan") if memory.is_floating_point() else -1)


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
    """A FIFO of closures; `head_ready` says whether its first entry may run now.

    An entry that raises breaks the lane, as on an accelerator: nothing behind it runs, and all who wait are told.
    """

    def __init__(self, name: str, scheduler: "Scheduler"):
        self.name = name
        self._scheduler = scheduler
        self._queue: deque[tuple[Fence | None, Callable[[], None]]] = deque()
        self._dropped: list[Cell] = []
        self._error: BaseException | None = None

    def run(self, work: Callable[..., Any], *args: Any) -> Any:
        while self._dropped:
            self._push(None, self._dropped.pop().overwrite)
        cell = Cell(self.name)
        given = [argument.cell if isinstance(argument, Deferred) else argument for argument in args]

        def execute() -> None:
            cell.write(work(*(value.read() if isinstance(value, Cell) else value for value in given)))

        self._push(None, execute)
        return Deferred(cell, self._dropped)

    def record(self) -> Fence:
        fence = QueuedFence(self._scheduler)
        self._push(None, lambda: setattr(fence, "passed", True))
        return fence

    def wait(self, fence: Fence) -> None:
        if not self._scheduler.ignores_wait():
            self._push(fence, lambda: None)

    def head_ready(self) -> bool:
        if self._error is not None:
            return True
        if not self._queue:
            return False
        fence = self._queue[0][0]
        return fence is None or fence.done()

    def step(self) -> None:
        if self._error is not None:
            raise self._error
        try:
            self._queue.popleft()[1]()
        except BaseException as error:
            self._error = error
            raise

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
    """Picks which queue advances next. Each seed favours some queues and starves others, and is eager or lazy.

    Args:
        seed: chooses the interleaving.
        ignored_wait: the place ("file.py:line", as listed in `wait_sites`) of one wait to leave out, to prove that a
            test notices.
    """

    def __init__(self, seed: int, ignored_wait: str | None = None):
        self._random = random.Random(seed)
        self._eagerness = self._random.choice([0.0, 0.3, 0.6, 0.9])
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
        while self._random.random() < self._eagerness and self._step():
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
    """file.py:line of the engine's call that leads to `Lane.wait`, `Fence.wait` or `Worker.wait_until`."""
    frame = sys._getframe(3)
    while frame.f_code.co_name in FORWARDING and frame.f_back is not None:
        frame = frame.f_back
    return f"{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno}"


class FuzzedLanes(Lanes):
    """Lanes that hand out memory which earlier computation may still write."""

    def empty(self, shape: Iterable[int], dtype: torch.dtype) -> Tensor:
        memory = super().empty(shape, dtype)
        self.compute.run(overwrite, memory)
        return memory


def fuzzed_lanes(seed: int, ignored_wait: str | None = None) -> tuple[Lanes, Scheduler]:
    """CPU lanes whose interleaving is drawn from `seed`."""
    scheduler = Scheduler(seed, ignored_wait)
    names = ("compute", "h2d", "d2h", "update")
    compute, h2d, d2h, update = (scheduler.add(QueuedLane(name, scheduler)) for name in names)

    def start_worker(name: str, work: Callable[[], bool]) -> QueuedWorker:
        return scheduler.add(QueuedWorker(name, work, scheduler))

    return FuzzedLanes(torch.device("cpu"), compute, h2d, d2h, update, start_worker), scheduler
