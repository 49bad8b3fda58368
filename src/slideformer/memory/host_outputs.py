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
ALIGNED_BYTES = 512  # as a caching allocator of the device aligns memory, so that kernels take the same paths
FIXED_BYTES = 2**20  # of a forward's outputs, however many sequences: seeds, and what alignment takes


class Holder(Protocol):
    """A forward that holds outputs: a `Tape`."""

    moved_bytes: int  # by `move_outputs`

    def move_outputs(self, memory: Tensor) -> None:
        """Copy them to `memory` (uint8), and hold them no longer; an error if they do not fit."""
        ...

    def give_outputs(self, memory: Tensor) -> None:
        """They are in `memory`, where they were in that of `move_outputs`."""
        ...


@dataclass(eq=False)
class Place:
    """Device memory for the outputs of one forward on their way out, or back."""

    flat: Tensor
    key: Key | None = None  # whose outputs are there, or come
    ready: Fence | None = None  # they have come back; None: they are still there
    left: Fence | None = None  # what was moved there has left


class HostOutputs:
    """Keeps what forwards give in host memory.

    Outputs leave through places of their own, into which they are copied first. Left where they are until they have
    left, they would be memory that goes back to the allocator at any time, and leave fragments. Backward finds the last
    ones where they are, and frees a place for each that comes back.

    Args:
        keys: of the forwards whose outputs leave the device; others are left alone.
        most_bytes: of the outputs of one forward, laid out.
    """

    PLACES = 2  # one is filled or read, the other is on its way

    def __init__(self, lanes: Lanes, allocator: HostAllocator, keys: Collection[Key], most_bytes: int):
        self._lanes = lanes
        self._host = {
            key: allocator.empty("kept outputs", (most_bytes,), torch.uint8, pinned=True) for key in sorted(keys)
        }
        count = min(self.PLACES, len(self._host))
        self._places = [Place(torch.empty(most_bytes, dtype=torch.uint8, device=lanes.device)) for _ in range(count)]
        self._tapes: dict[Key, Any] = {}
        self._order: list[Key] = []

    @staticmethod
    def device_bytes_needed(count: int, most_bytes: int) -> int:
        return min(count, HostOutputs.PLACES) * most_bytes

    @staticmethod
    def host_bytes_needed(count: int, most_bytes: int) -> int:
        return count * most_bytes

    def save(self, i: int, m: int, tape: Any) -> None:
        """Send the outputs that the forward of block i over micro-batch m holds."""
        key = (i, m)
        if key not in self._host:
            return
        place = self._places[len(self._tapes) % len(self._places)]
        if place.left is not None:
            self._lanes.compute.wait(place.left)
        self._lanes.compute.run(move_outputs, tape, place.flat)
        self._lanes.d2h.wait(self._lanes.compute.record())
        self._lanes.d2h.run(copy_outputs, tape, place.flat, self._host[key])
        place.key, place.ready, place.left = key, None, self._lanes.d2h.record()
        self._tapes[key] = tape

    def turn(self, order: Sequence[Key]) -> None:
        """Backward starts and will load outputs in this order."""
        there = [place.key for place in self._places]
        self._order = [key for key in order if key in self._tapes and key not in there]

    def load(self, i: int, m: int, tape: Any) -> None:
        """Give the forward its outputs back, for computation submitted from here until `release(i, m)`."""
        if (i, m) in self._tapes:
            place = self._place_of((i, m))
            if place.ready is not None:
                self._lanes.compute.wait(place.ready)
            self._lanes.compute.run(give_outputs, tape, place.flat)

    def release(self, i: int, m: int) -> None:
        """Computation submitted so far was the last to read them; the next ones are fetched.

        They have reached the host: before their place was filled again, computation waited for that.
        """
        if self._tapes.pop((i, m), None) is None:
            return
        place = self._place_of((i, m))
        place.key = None
        if self._order:
            place.key = self._order.pop(0)
            self._lanes.h2d.wait(self._lanes.compute.record())
            self._lanes.h2d.run(copy_outputs, self._tapes[place.key], self._host[place.key], place.flat)
            place.ready = self._lanes.h2d.record()

    def _place_of(self, key: Key) -> Place:
        return next(place for place in self._places if place.key == key)


def move_outputs(tape: Holder, memory: Tensor) -> None:
    tape.move_outputs(memory)


def give_outputs(tape: Holder, memory: Tensor) -> None:
    tape.give_outputs(memory)


def copy_outputs(tape: Holder, memory: Tensor, destination: Tensor) -> None:
    """What is filled of a place, to the host or back."""
    copy_async(memory[: tape.moved_bytes], destination[: tape.moved_bytes])


def starts(memories: Sequence[Tensor]) -> list[int]:
    """Where each of these (uint8) begins when they are laid out one behind the other."""
    found, start = [], 0
    for memory in memories:
        found.append(start)
        start += aligned(memory.numel())
    return found


def aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNED_BYTES) * ALIGNED_BYTES
