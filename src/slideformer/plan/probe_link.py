"""Rates of copies between pinned host memory and the GPU: alone, both ways at once, and what they leave to the CPU."""

import math
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from slideformer.memory.host import HostAllocator
from slideformer.plan.rates import LinkRates
from slideformer.units import MIB

COPY_BYTES = 256 * MIB  # about a layer
COPIES = 8  # of a direction between two events
ROUNDS = 5
LONGEST_SLOWDOWN = 4  # of the CPU's work by copies: so much longer are they kept going


class LinkProbe:
    """Copies in both directions, each on a stream of its own and timed by events in that stream.

    Args:
        allocator: gives pinned memory, as it does to the engine.
    """

    def __init__(self, device: torch.device, allocator: HostAllocator):
        pinned = [allocator.empty("probe", (COPY_BYTES,), torch.uint8, pinned=True) for _ in range(2)]
        inwards, outwards = (torch.zeros(COPY_BYTES, dtype=torch.uint8, device=device) for _ in range(2))
        self._h2d = Direction(torch.cuda.Stream(device), source=pinned[0], target=inwards)
        self._d2h = Direction(torch.cuda.Stream(device), source=outwards, target=pinned[1])
        torch.cuda.synchronize()
        self._rates(self._h2d, self._d2h)  # the first copies set things up

    def measure(self) -> LinkRates:
        """One direction alone, then both together."""
        return LinkRates(*self._rates(self._h2d), *self._rates(self._d2h), *self._rates(self._h2d, self._d2h))

    def seconds_under_copies(self, work: Callable[[], object], seconds_alone: float) -> float:
        """Host seconds of `work` while both directions are busy.

        Args:
            seconds_alone: of `work` without copies; decides how many copies are queued.
        """
        slower = min(self._rates(self._h2d, self._d2h))
        count = math.ceil(LONGEST_SLOWDOWN * ROUNDS * seconds_alone * slower / COPY_BYTES) + 1
        for direction in (self._h2d, self._d2h):
            direction.queue(count)
        seconds = [_wall_seconds(work) for _ in range(ROUNDS)]
        torch.cuda.synchronize()
        return median(seconds)

    @staticmethod
    def _rates(*directions: "Direction") -> list[float]:
        """Bytes per second of each, started at the same moment."""
        events = [direction.queue(COPIES) for direction in directions]
        torch.cuda.synchronize()
        return [COPIES * COPY_BYTES / (before.elapsed_time(after) / 1e3) for before, after in events]


class Direction:
    """A stream that copies one buffer into another, again and again."""

    def __init__(self, stream: "torch.cuda.Stream", source: Tensor, target: Tensor):
        self._stream, self._source, self._target = stream, source, target

    def queue(self, count: int) -> tuple["torch.cuda.Event", "torch.cuda.Event"]:
        """Copy so often, without waiting; events before and after."""
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(self._stream):
            before.record()
            for _ in range(count):
                self._target.copy_(self._source, non_blocking=True)
            after.record()
        return before, after


def _wall_seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
