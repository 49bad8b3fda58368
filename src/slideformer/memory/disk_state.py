"""Durable layer state of which at most the weights stay in host memory; the rest is a record on disk.

An update needs the whole state: it arrives in one of a few buffers before its turn, is updated there by the code that
updates state in memory, and is written back while the next ones are updated.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from slideformer.layout import FlatLayout
from slideformer.memory.host import HostAllocator, LayerState, copy_planes
from slideformer.memory.record_ring import RecordRing
from slideformer.optim.adamw import AdamWStep
from slideformer.optim.rounding import Rounding
from slideformer.storage.disk import padded
from slideformer.storage.record_files import weights_of


class DiskState:
    """The state of one layer, as `LayerState`, in a record of the ring.

    Args:
        fetched: names of what the device fetches, as `LayerState` asks its allocator for it.
        weights_on_disk: whether that is in the record, too, as its start; otherwise it stays in host memory, pinned.

    Attributes:
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
        fetched: Collection[str],
        moment_dtype: torch.dtype = torch.float32,
        rounding: Rounding | None = None,
        weights_on_disk: bool = False,
    ):
        self.name, self.layout, self.weights_on_disk = name, layout, weights_on_disk
        self._ring, self._fetches_lo = ring, "weight remainders" in fetched
        places = Places(allocator, fetched, weights_on_disk)
        self._over = [
            LayerState(name, layout, places.over(buffer), pin_lo, threads, moment_dtype, rounding)
            for buffer in ring.buffers
        ]
        self.counts = self._over[0].counts
        for state in self._over:
            state.counts = self.counts

    def opened(self, change: bool) -> AbstractContextManager[LayerState]:
        """The whole state in memory; with `change` what is changed within is kept.

        Raises:
            DiskError: it cannot be read, or an earlier one not written.
        """
        return self._opened(self.name, change)

    @contextmanager
    def _opened(self, record: str, change: bool) -> Iterator[LayerState]:
        with self._ring.borrow(record, change) as buffer:
            yield self._over[buffer]

    def opened_weights(self, dtype: torch.dtype) -> AbstractContextManager[LayerState]:
        """A state of which only the weights are to be read, in `dtype`; what of them is on disk is read from there."""
        if dtype != torch.bfloat16 and not self._fetches_lo:
            return self._opened(self.name, change=False)
        if self.weights_on_disk:
            return self._opened(weights_of(self.name), change=False)
        return nullcontext(self._over[0])

    def update(self, gradient: Tensor, reached: Collection[str], hyper: AdamWStep) -> None:
        """One AdamW step, as in `LayerState`."""
        with self._opened(self.name, change=True) as state:
            state.update(gradient, reached, hyper)

    def copy_weights(self, out: Tensor) -> None:
        """Copy the weights to `out` [numel] on any device, in its dtype."""
        with self.opened_weights(out.dtype) as state:
            state.copy_weights(out)

    def copy_record(self, record: Tensor, out: Tensor) -> None:
        """As `copy_weights`, of weights whose record is in `record` [at least its bytes, uint8]."""
        numel = self.layout.numel
        planes = record.view(torch.bfloat16)[:numel], record.view(torch.int16)[numel : 2 * numel]
        copy_planes(*planes, out, self._over[0].adam.threads)


class Places:
    """Memory for one layer's state, much of it in whichever buffer its record is in.

    Args:
        fetched: names of what the device fetches: allocated once, or, if it is on disk, at the start of the buffer.
    """

    def __init__(
        self, allocator: HostAllocator | None = None, fetched: Collection[str] = (), fetched_on_disk: bool = False
    ):
        self._allocator, self._on_disk = allocator, fetched_on_disk
        self._fetched: Collection[str] = fetched
        self._allocated: dict[str, Tensor] = {}

    def over(self, buffer: Tensor) -> HostAllocator:
        return PartsOfABuffer(self, buffer)

    def resident(self, name: str, shape: Iterable[int], dtype: torch.dtype, pinned: bool) -> Tensor | None:
        if self._allocator is None or self._on_disk or name not in self._fetched:
            return None
        if name not in self._allocated:
            self._allocated[name] = self._allocator.empty(name, shape, dtype, pinned)
        return self._allocated[name]

    def ends_weights(self, name: str) -> bool:
        """Whether this part lies behind weights that are read alone, and so begins a page."""
        return self._on_disk and name not in self._fetched


class PartsOfABuffer(HostAllocator):
    """Gives out parts of a buffer, in the order in which they are asked for, as they are."""

    def __init__(self, places: Places, buffer: Tensor):
        super().__init__(pin=False)
        self._places, self._buffer, self._end = places, buffer, 0
        self._within_weights = True

    def empty(self, name: str, shape: Iterable[int], dtype: torch.dtype, pinned: bool = False) -> Tensor:
        shape = tuple(shape)
        resident = self._places.resident(name, shape, dtype, pinned)
        if resident is not None:
            return resident
        if self._within_weights and self._places.ends_weights(name):
            self._within_weights, self._end = False, padded(self._end)
        start, self._end = self._end, self._end + torch.Size(shape).numel() * dtype.itemsize
        return self._buffer[start : self._end].view(dtype).view(shape)


def fetched_parts(dtype: torch.dtype) -> dict[str, int]:
    """What the device fetches of a layer that computes in `dtype` -> bytes an element."""
    both = {"weights": torch.bfloat16.itemsize, "weight remainders": torch.int16.itemsize}
    return both if dtype == torch.float32 else {"weights": both["weights"]}


def weight_bytes(layout: FlatLayout, dtype: torch.dtype) -> int:
    """Of a layer's state: what the device fetches, in host memory or on disk."""
    return layout.numel * sum(fetched_parts(dtype).values())


def record_bytes(layout: FlatLayout, dtype: torch.dtype, moment_dtype: torch.dtype = torch.float32) -> int:
    """Of a layer's state, on disk: all but its weights."""
    return LayerState.bytes_needed(layout, moment_dtype) - weight_bytes(layout, dtype)


def units_on_disk(layouts: Mapping[str, FlatLayout], blocks: Sequence[str], count: int) -> list[str]:
    """`count` of the blocks that are trained, evenly spread, so that between two the disk has time to work."""
    return spread([name for name in blocks if layouts[name].trained_numel], count)


def spread(units: Sequence[str], count: int) -> list[str]:
    """`count` of the units, at even distances."""
    count = min(count, len(units))
    return [name for i, name in enumerate(units) if (i + 1) * count // len(units) > i * count // len(units)]
