"""Lanes that note how long their work runs, without changing when it runs.

Two timing events around each submission go into the lane's own queue; they are read a step later, when they have long
passed. Nothing waits for them. On the CPU, where work runs when submitted, it is wall time.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch

from slideformer.lanes.lanes import Fence, Lane, Lanes, StreamLane


class Mark(Protocol):
    """A moment in a lane's queue; `torch.Event` is one."""

    def query(self) -> bool: ...

    def elapsed_time(self, other: Any, /) -> float:
        """Milliseconds from this mark to another."""
        ...


class WallMark:
    """A moment of the host's clock."""

    def __init__(self) -> None:
        self._seconds = time.perf_counter()

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: "WallMark", /) -> float:
        return (other._seconds - self._seconds) * 1e3


Spans = list[tuple[Mark, Mark]]


class MeasuredLane:
    """A lane with a mark before and after each piece of work.

    Args:
        lane: does the work.
        mark: puts a mark into its queue.
    """

    def __init__(self, lane: Lane, mark: Callable[[], Mark]):
        self._lane, self._mark = lane, mark
        self._spans: Spans = []

    def run(self, work: Callable[..., Any], *args: Any) -> Any:
        before = self._mark()
        result = self._lane.run(work, *args)
        self._spans.append((before, self._mark()))
        return result

    def record(self) -> Fence:
        return self._lane.record()

    def wait(self, fence: Fence) -> None:
        self._lane.wait(fence)

    def take(self) -> Spans:
        """The spans of all work submitted since the last call."""
        spans, self._spans = self._spans, []
        return spans


@dataclass(frozen=True)
class BusySpans:
    """The work of a step, by lane."""

    compute: Spans
    h2d: Spans
    d2h: Spans

    @property
    def compute_seconds(self) -> float:
        return _seconds(self.compute)

    @property
    def h2d_seconds(self) -> float:
        return _seconds(self.h2d)

    @property
    def d2h_seconds(self) -> float:
        return _seconds(self.d2h)


def measured(lanes: Lanes) -> Lanes:
    """The same lanes, measured; `take_spans` must be called now and then, as spans add up until it is."""
    compute, h2d, d2h = (MeasuredLane(lane, mark_of(lane)) for lane in (lanes.compute, lanes.h2d, lanes.d2h))
    return replace(lanes, compute=compute, h2d=h2d, d2h=d2h)


def take_spans(lanes: Lanes) -> BusySpans:
    """What ran since the last call; nothing where lanes are not measured."""

    def taken(lane: Lane) -> Spans:
        return lane.take() if isinstance(lane, MeasuredLane) else []

    return BusySpans(taken(lanes.compute), taken(lanes.h2d), taken(lanes.d2h))


def mark_of(lane: Lane) -> Callable[[], Mark]:
    """What puts a mark into the lane's queue."""
    return partial(_timing_event, lane.stream) if isinstance(lane, StreamLane) else WallMark


def _timing_event(stream: torch.Stream) -> Mark:
    return stream.record_event(torch.Event(stream.device, enable_timing=True))


def _seconds(spans: Spans) -> float:
    """Of the work that is over: whoever reads does not wait for the rest."""
    return sum(before.elapsed_time(after) for before, after in spans if after.query()) / 1e3
