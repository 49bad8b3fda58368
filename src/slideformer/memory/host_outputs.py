"""Expensive outputs of blocks in host memory, from forward until backward: what the link has room for is not computed
again, and takes no room on the device."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from slideformer.lanes.lanes import Fence, Lanes
from slideformer.memory.gradients import copy_async
from slideformer.memory.host import HostAllocator

Key = tuple[int, int]  # layer, micro-batch
FIXED_BYTES = 2**20  # of a forward's outputs, however many sequences: seeds, and what alignment takes
ALIGNED_BYTES = 512  # as a caching allocator of the device aligns memory, so that kernels take the same paths


class Holder(Protocol):
    """A forward that holds outputs: a `Tape`."""

    def take_outputs(self, most_bytes: int) -> list[Tensor]:
        """Their memory, as uint8 [bytes] each, no longer held; an error if it is more than that when laid out."""
        ...

    def give_outputs(self, memory: Tensor) -> None:
        """The same memory again, laid out in `memory` (uint8)."""
        ...


@dataclass(eq=False)
class Arrival:
    """Device memory for the outputs of one forward on their way back."""

    flat: Tensor
    key: Key | None = None
    ready: Fence | None = None
    free: Fence | None = None


class HostOutputs:
    """Keeps what forwards give in host memory.

    Args:
        keys: of the forwards whose outputs leave the device; others are left alone.
        most_bytes: of the outputs of one forward, laid out.
    """

    STAGING = 2  # read, arriving; in forward: leaving, computed

    def __init__(self, lanes: Lanes, allocator: HostAllocator, keys: Collection[Key], most_bytes: int):
        self._lanes, self._most_bytes = lanes, most_bytes
        self._host = {
            key: allocator.empty("kept outputs", (most_bytes,), torch.uint8, pinned=True) for key in sorted(keys)
        }
        self._tapes: dict[Key, Any] = {}
        self._saved: dict[Key, Fence] = {}
        self._leaving: list[tuple[Any, Fence]] = []  # (outputs, copied out): memory not to be reused before
        self._arrivals = [  # for good: pieces of this size that come and go would leave fragments
            Arrival(torch.empty(most_bytes, dtype=torch.uint8, device=lanes.device))
            for _ in range(min(self.STAGING, len(self._host)))
        ]
        self._order: list[Key] = []

    @staticmethod
    def device_bytes_needed(count: int, most_bytes: int) -> int:
        """For what comes back."""
        return min(count, HostOutputs.STAGING) * most_bytes

    @staticmethod
    def host_bytes_needed(count: int, most_bytes: int) -> int:
        return count * most_bytes

    def save(self, i: int, m: int, tape: Any) -> None:
        """Send the outputs that the forward of block i over micro-batch m holds."""
        key = (i, m)
        if key not in self._host:
            return
        outputs = self._lanes.compute.run(take_outputs, tape, self._most_bytes)
        self._lanes.d2h.wait(self._lanes.compute.record())
        self._lanes.d2h.run(send_outputs, outputs, self._host[key])
        self._tapes[key], self._saved[key] = tape, self._lanes.d2h.record()
        self._leaving.append((outputs, self._saved[key]))
        del outputs
        self._retire(keep=self.STAGING - 1)

    def turn(self, order: Sequence[Key]) -> None:
        """Backward starts and will load outputs in this order."""
        self._retire(keep=0)
        self._order = [key for key in order if key in self._tapes]
        for arrival in self._arrivals:
            self._fetch_next(arrival)

    def load(self, i: int, m: int, tape: Any) -> None:
        """Give the forward its outputs back, for computation submitted from here until `release(i, m)`."""
        if (i, m) in self._tapes:
            arrival = self._arrival_of((i, m))
            assert arrival.ready is not None
            self._lanes.compute.wait(arrival.ready)
            self._lanes.compute.run(give_outputs, tape, arrival.flat)

    def release(self, i: int, m: int) -> None:
        """Computation submitted so far was the last to read them; the next ones are fetched."""
        if self._tapes.pop((i, m), None) is None:
            return
        arrival = self._arrival_of((i, m))
        arrival.key, arrival.free = None, self._lanes.compute.record()
        self._fetch_next(arrival)

    def _arrival_of(self, key: Key) -> Arrival:
        return next(arrival for arrival in self._arrivals if arrival.key == key)

    def _fetch_next(self, arrival: Arrival) -> None:
        if not self._order:
            return
        key = self._order.pop(0)
        if arrival.free is not None:
            self._lanes.h2d.wait(arrival.free)
        self._lanes.h2d.wait(self._saved[key])
        self._lanes.h2d.run(fetch_outputs, self._tapes[key], self._host[key], arrival.flat)
        arrival.key, arrival.ready = key, self._lanes.h2d.record()

    def _retire(self, keep: int) -> None:
        """Let go of outputs that have left; compute waits for their copies, so their memory may be reused."""
        while len(self._leaving) > keep:
            self._lanes.compute.wait(self._leaving.pop(0)[1])


def take_outputs(tape: Holder, most_bytes: int) -> list[Tensor]:
    return tape.take_outputs(most_bytes)


def give_outputs(tape: Holder, memory: Tensor) -> None:
    tape.give_outputs(memory)


def send_outputs(outputs: Sequence[Tensor], memory: Tensor) -> None:
    for output, start in zip(outputs, starts(outputs), strict=True):
        copy_async(output, memory[start : start + output.numel()])


def fetch_outputs(tape: Any, memory: Tensor, destination: Tensor) -> None:
    used = tape.taken_bytes
    copy_async(memory[:used], destination[:used])


def starts(memories: Sequence[Tensor]) -> list[int]:
    """Where each of these (uint8) begins when they are laid out one behind the other."""
    found, start = [], 0
    for memory in memories:
        found.append(start)
        start += aligned(memory.numel())
    return found


def aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNED_BYTES) * ALIGNED_BYTES
