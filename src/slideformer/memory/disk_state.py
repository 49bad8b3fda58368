"""Durable layer state of which only the weights stay in host memory; the rest is a record on disk.

An update needs the whole state: it arrives in one of a few buffers before its turn, is updated there by the code that
updates state in memory, and is written back while the next ones are updated.
"""

import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from slideformer.layout import FlatLayout
from slideformer.memory.host import HostAllocator, LayerState
from slideformer.optim.adamw import AdamWStep
from slideformer.optim.rounding import Rounding
from slideformer.storage.disk import DiskFile, padded

BUFFERS = 4  # one is updated, two arrive, one is written back


class RecordRing:
    """The buffers through which records pass, and what is on its way.

    `expect` brings records before they are needed; `borrow` gives one. Whatever was or was not expected, `borrow` is
    right: a wrong guess only costs time. Both may be called from any thread.

    Args:
        record_bytes: unit -> size of its record.
        buffers: how many; with fewer than `BUFFERS` the disk and AdamW wait for each other more often.
    """

    holds_any = True

    def __init__(
        self, directory: Path, record_bytes: Mapping[str, int], allocator: HostAllocator, buffers: int = BUFFERS
    ):
        self.file = DiskFile(directory, record_bytes)  # first: no room is known before memory is taken
        size = max(map(padded, record_bytes.values()), default=0)
        self._units = frozenset(record_bytes)
        self.buffers = [allocator.empty("disk buffers", (size,), torch.uint8) for _ in range(buffers)]
        self._memory = [buffer.numpy().data for buffer in self.buffers]
        self._changed = threading.Condition()
        self._free = list(range(buffers))
        self._arriving: dict[str, tuple[int, Future[None]]] = {}
        self._borrowed: set[str] = set()  # what the disk has of them is about to be the past
        self._in_use = 0  # buffers that are borrowed or being written: they come back by themselves
        self._error: BaseException | None = None

    @staticmethod
    def bytes_needed(record_bytes: Iterable[int], buffers: int = BUFFERS) -> int:
        """In host memory."""
        return buffers * max(map(padded, record_bytes), default=0)

    def expect(self, units: Sequence[str]) -> None:
        """These are needed soon, in this order: bring as many as there are free buffers for.

        Raises:
            DiskError: a record could not be written back.
        """
        with self._changed:
            self._check()
            for unit in units:
                if unit in self._units and unit not in self._arriving and unit not in self._borrowed and self._free:
                    self._bring(unit)

    def ready(self, unit: str) -> bool:
        """Whether `borrow` would not wait, as for everything that is not on disk."""
        if unit not in self._units:
            return True
        with self._changed:
            return unit in self._arriving and self._arriving[unit][1].done()

    @contextmanager
    def borrow(self, unit: str, change: bool) -> Iterator[int]:
        """The number of the buffer that holds the unit's record. With `change` it is written back afterwards, in the
        background.

        Raises:
            DiskError: the record could not be read, or an earlier one not written.
        """
        buffer, arrived = self._take(unit)
        written = None
        try:
            arrived.result()
            yield buffer
            if change:
                written = self.file.write(unit, self._memory[buffer])
        finally:
            self._end_of_loan(unit, buffer, is_written=written is not None)
        if written is not None:
            written.add_done_callback(lambda done: self._give_back(buffer, done.exception()))

    def drain(self) -> None:
        """Wait until everything is written back.

        Raises:
            DiskError: something could not be.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._in_use == 0)
            self._check()

    def close(self) -> None:
        self.file.close()

    def _take(self, unit: str) -> tuple[int, Future[None]]:
        with self._changed:
            self._changed.wait_for(lambda: self._can_take(unit))
            self._check()
            if unit not in self._arriving:
                if not self._free:
                    self._forget_one()
                self._bring(unit)
            self._in_use += 1
            self._borrowed.add(unit)
            return self._arriving.pop(unit)

    def _can_take(self, unit: str) -> bool:
        there = unit in self._arriving or bool(self._free) or not self._in_use
        return self._error is not None or (unit not in self._borrowed and there)

    def _bring(self, unit: str) -> None:
        buffer = self._free.pop()
        self._arriving[unit] = buffer, self.file.read(unit, self._memory[buffer])

    def _forget_one(self) -> None:
        """Of the records that are expected, let go of the one that was asked for last."""
        buffer, arrived = self._arriving.pop(next(reversed(self._arriving)))
        arrived.exception()  # waits; what is wrong with it is told when it is asked for again
        self._free.append(buffer)

    def _end_of_loan(self, unit: str, buffer: int, is_written: bool) -> None:
        with self._changed:
            self._borrowed.remove(unit)
            self._changed.notify_all()
        if not is_written:
            self._give_back(buffer)

    def _give_back(self, buffer: int, error: BaseException | None = None) -> None:
        with self._changed:
            self._error = self._error or error
            self._free.append(buffer)
            self._in_use -= 1
            self._changed.notify_all()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error


class AllInMemory:
    """In place of a ring where nothing is on disk."""

    holds_any = False

    def expect(self, units: Sequence[str]) -> None:
        pass

    def ready(self, unit: str) -> bool:
        return True

    def drain(self) -> None:
        pass

    def close(self) -> None:
        pass


class DiskState:
    """The state of one layer, as `LayerState`, with all but what is resident in a record of the ring.

    Args:
        resident: names of what stays in host memory, as `LayerState` asks its allocator for it.

    Attributes:
        hi: bfloat16 [numel], in host memory, pinned.
        counts: as in `LayerState`.
    """

    def __init__(
        self,
        name: str,
        layout: FlatLayout,
        allocator: HostAllocator,
        ring: RecordRing,
        pin_lo: bool,
        threads: int | None,
        resident: Collection[str],
        moment_dtype: torch.dtype = torch.float32,
        rounding: Rounding | None = None,
    ):
        self.name, self.layout, self._ring = name, layout, ring
        places = Places(allocator, resident)
        self._over = [
            LayerState(name, layout, places.over(buffer), pin_lo, threads, moment_dtype, rounding)
            for buffer in ring.buffers
        ]
        self.hi, self.counts = self._over[0].hi, self._over[0].counts
        self._lo_is_resident = "weight remainders" in resident
        for state in self._over:
            state.counts = self.counts

    def opened(self, change: bool) -> AbstractContextManager[LayerState]:
        """The whole state in memory; with `change` what is changed within is kept.

        Raises:
            DiskError: it cannot be read, or an earlier one not written.
        """
        return self._opened(change)

    @contextmanager
    def _opened(self, change: bool) -> Iterator[LayerState]:
        with self._ring.borrow(self.name, change) as buffer:
            yield self._over[buffer]

    def opened_weights(self, dtype: torch.dtype) -> AbstractContextManager[LayerState]:
        """A state of which only the weights are to be read, in `dtype`; from the disk if they need their remainders."""
        if dtype == torch.bfloat16 or self._lo_is_resident:
            return nullcontext(self._over[0])
        return self._opened(change=False)

    def update(self, gradient: Tensor, reached: Collection[str], hyper: AdamWStep) -> None:
        """One AdamW step, as in `LayerState`."""
        with self._opened(change=True) as state:
            state.update(gradient, reached, hyper)

    def copy_weights(self, out: Tensor) -> None:
        """Copy the weights to `out` [numel] on any device, in its dtype."""
        with self.opened_weights(out.dtype) as state:
            state.copy_weights(out)


class Places:
    """Memory for one layer's state: what is resident is allocated once, the rest lies in whichever buffer it is in."""

    def __init__(self, allocator: HostAllocator | None = None, resident: Collection[str] = ()):
        self._allocator, self._resident = allocator, resident
        self._allocated: dict[str, Tensor] = {}

    def over(self, buffer: Tensor) -> HostAllocator:
        return PartsOfABuffer(self, buffer)

    def resident(self, name: str, shape: Iterable[int], dtype: torch.dtype, pinned: bool) -> Tensor | None:
        if self._allocator is None or name not in self._resident:
            return None
        if name not in self._allocated:
            self._allocated[name] = self._allocator.empty(name, shape, dtype, pinned)
        return self._allocated[name]


class PartsOfABuffer(HostAllocator):
    """Gives out parts of a buffer, in the order in which they are asked for, as they are."""

    def __init__(self, places: Places, buffer: Tensor):
        super().__init__(pin=False)
        self._places, self._rest = places, buffer

    def empty(self, name: str, shape: Iterable[int], dtype: torch.dtype, pinned: bool = False) -> Tensor:
        shape = tuple(shape)
        resident = self._places.resident(name, shape, dtype, pinned)
        if resident is not None:
            return resident
        size_bytes = torch.Size(shape).numel() * dtype.itemsize
        part, self._rest = self._rest[:size_bytes], self._rest[size_bytes:]
        return part.view(dtype).view(shape)


def resident_parts(dtype: torch.dtype) -> dict[str, int]:
    """What stays in host memory of a layer that computes in `dtype` -> bytes an element: what the device fetches."""
    both = {"weights": torch.bfloat16.itemsize, "weight remainders": torch.int16.itemsize}
    return both if dtype == torch.float32 else {"weights": both["weights"]}


def resident_bytes(layout: FlatLayout, dtype: torch.dtype) -> int:
    """Of a layer's state, in host memory."""
    return layout.numel * sum(resident_parts(dtype).values())


def record_bytes(layout: FlatLayout, dtype: torch.dtype, moment_dtype: torch.dtype = torch.float32) -> int:
    """Of a layer's state, on disk."""
    return LayerState.bytes_needed(layout, moment_dtype) - resident_bytes(layout, dtype)


def units_on_disk(layouts: Mapping[str, FlatLayout], blocks: Sequence[str], count: int) -> list[str]:
    """`count` of the blocks that are trained, evenly spread, so that between two the disk has time to work."""
    trained = [name for name in blocks if layouts[name].trained_numel]
    count = min(count, len(trained))
    return [name for i, name in enumerate(trained) if (i + 1) * count // len(trained) > i * count // len(trained)]
