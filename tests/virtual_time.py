"""The engine in virtual time: its own order of work, waits and worker, on a machine whose every speed is given.

Work runs when it is submitted, as on inline lanes, so values are right; beside that, clocks tell when it would have
run. A lane starts an entry behind what is on it, what it waits for, and the host's submission. The host takes no time
of its own, and waits where the engine waits. The worker takes the update it would take at its own time; what an update
changes is seen by the host from the time on at which it ends.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from slideformer.engine.updates import Update, Updates
from slideformer.streams import Lanes, raise_worker_error

Seconds = Callable[[Callable[..., Any], tuple[Any, ...]], float]


@dataclass
class Clock:
    """Where a thread of the host is."""

    now: float = 0.0


@dataclass
class Span:
    lane: str
    what: str
    start: float
    stop: float


class VirtualTime:
    """The clocks and lanes of one engine.

    Args:
        compute, h2d, d2h: seconds of an entry of that lane.
        update: seconds of an update.
    """

    def __init__(self, compute: Seconds, h2d: Seconds, d2h: Seconds, update: Callable[[Update], float]):
        self.host, self.running = Clock(), Clock()
        self.running = self.host
        self.update_seconds = update
        self.spans: list[Span] = []
        self.worker: VirtualWorker | None = None
        lanes = [TimedLane(self, name, of) for name, of in (("compute", compute), ("h2d", h2d), ("d2h", d2h))]
        self.compute, self.h2d, self.d2h = lanes
        update_lane = TimedLane(self, "update", lambda *_: 0.0)
        self.lanes = Lanes(torch.device("cpu"), *lanes, update_lane, self._start_worker)

    def _start_worker(self, name: str, work: Callable[[], bool]) -> "VirtualWorker":
        self.worker = VirtualWorker(self, name, work)
        return self.worker


class TimedLane:
    def __init__(self, time: VirtualTime, name: str, seconds: Seconds):
        self._time, self._name, self._seconds = time, name, seconds
        self.free = 0.0

    def run(self, work: Callable[..., Any], *args: Any) -> Any:
        start = max(self.free, self._time.running.now)
        self.free = start + self._seconds(work, args)
        if self.free > start:
            self._time.spans.append(Span(self._name, getattr(work, "__name__", "copy"), start, self.free))
        return work(*args)

    def record(self) -> "TimedFence":
        return TimedFence(self._time, self.free)

    def wait(self, fence: Any) -> None:
        self.free = max(self.free, fence.at)


@dataclass
class TimedFence:
    time: VirtualTime
    at: float

    def done(self) -> bool:
        return self.at <= self.time.running.now

    def wait(self) -> None:
        self.time.running.now = max(self.time.running.now, self.at)


@dataclass
class VirtualWorker:
    """Takes one update after the other, at its own time; `taken` is one of which the host has not seen the end."""

    time: VirtualTime
    name: str
    work: Callable[[], bool]
    clock: Clock = field(default_factory=Clock)
    taken: Update | None = None
    ends: float = 0.0
    error: BaseException | None = None

    @property
    def updates(self) -> Updates:
        return self.work.__self__  # type: ignore[attr-defined]  # a bound method

    def kick(self) -> None:
        self._catch_up()

    def check(self) -> None:
        self._catch_up()
        raise_worker_error(self.name, self.error)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        self._catch_up()
        while not condition():
            assert self.taken or self._take(float("inf")), "the host waits for what nobody does"
            self.time.host.now = max(self.time.host.now, self.ends)
            self._finish()
        self._catch_up()

    def close(self) -> None:
        pass

    def _catch_up(self) -> None:
        """All that ends before the host's present."""
        while (self.taken or self._take(self.time.host.now)) and self.ends <= self.time.host.now:
            self._finish()

    def _take(self, latest: float) -> bool:
        """The next update, if it is taken by then; the worker begins to wait for one that has not landed at once."""
        self.time.running = self.clock
        update = self.updates._choose()
        if update is None:
            self.clock.now = max(self.clock.now, min(latest, self.time.host.now))
            update = self.updates._choose()
        if update is not None and update.step.max_norm is not None and update.step.norm is None:
            self.clock.now = max(self.clock.now, *(self._landed(u) for u in self.updates._pending))
            update = self.updates._choose()
        self.time.running = self.time.host
        if update is None:
            return False
        start = max(self.clock.now, self._landed(update))
        self.taken, self.ends = update, start + self.time.update_seconds(update)
        self.time.spans.append(Span("adamw", update.unit, start, self.ends))
        return True

    @staticmethod
    def _landed(update: Update) -> float:
        return max((gradient.landed.at for gradient in update.gradients), default=0.0)  # type: ignore[attr-defined]

    def _finish(self) -> None:
        taken, self.taken = self.taken, None
        assert taken is not None
        self.clock.now = self.ends
        self.time.running = self.clock
        choose = self.updates._choose
        self.updates._choose = lambda: taken  # type: ignore[method-assign]
        try:
            self.work()
        finally:
            self.updates._choose = choose  # type: ignore[method-assign]
            self.time.running = self.time.host
