"""Boundary activations: the input of each block, kept from forward until its recomputation in backward."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slideformer.memory.boundaries_on_disk import BoundariesOnDisk, Key
from slideformer.memory.gradients import copy_async
from slideformer.memory.host import HostAllocator
from slideformer.streams import Fence, Lanes


@dataclass(eq=False)
class Arrival:
    """A device buffer for one boundary on its way back."""

    flat: Tensor
    key: Key | None = None
    ready: Fence | None = None  # None until the copy is submitted
    free: Fence | None = None


class ActivationStore:
    """Keeps x[layer, micro-batch] on the device, in host memory, or on disk.

    Args:
        host_layers: layers whose boundaries leave the device; the others stay there.
        micro_batches, elements: how many boundaries a layer has at most, and the elements of the largest.
        on_disk: those of `host_layers` whose boundaries go on to disk, a record each, named by `record_of`; None: none.
    """

    STAGING = 3  # read, arriving, next

    def __init__(
        self,
        lanes: Lanes,
        allocator: HostAllocator,
        host_layers: Sequence[int],
        micro_batches: int,
        elements: int,
        dtype: torch.dtype,
        on_disk: BoundariesOnDisk | None = None,
    ):
        self._lanes, self._dtype, self._disk = lanes, dtype, on_disk
        self._off_device = {(i, m) for i in host_layers for m in range(micro_batches)}
        self._host = {
            key: allocator.empty("activations", (elements,), dtype, pinned=True)
            for key in sorted(self._off_device)
            if on_disk is None or key not in on_disk.records
        }
        staging = self.STAGING if self._off_device else 0
        self._arrivals = [Arrival(torch.empty(elements, dtype=dtype, device=lanes.device)) for _ in range(staging)]
        self._kept: dict[Key, Any] = {}
        self._leaving: list[tuple[Any, Fence]] = []  # (boundary, copied out): memory not to be reused before
        self._saved: dict[Key, Fence] = {}
        self._shapes: dict[Key, torch.Size] = {}
        self._order: list[Key] = []

    @staticmethod
    def device_bytes_needed(layers: int, host_layers: int, micro_batches: int, elements: int, itemsize: int) -> int:
        staging = ActivationStore.STAGING if host_layers else 0
        return ((layers - host_layers) * micro_batches + staging) * elements * itemsize

    @staticmethod
    def host_bytes_needed(host_layers: int, micro_batches: int, elements: int, itemsize: int) -> int:
        """Of the layers whose boundaries are not on disk."""
        return host_layers * micro_batches * elements * itemsize

    def save(self, i: int, m: int, x: Any, shape: torch.Size) -> None:
        """Keep x (of `shape`), the input of block i for micro-batch m; x may be reused once the caller drops it."""
        key = (i, m)
        if key not in self._off_device:
            self._kept[key] = x
            return
        self._retire(keep=self.STAGING)
        self._shapes[key] = shape
        place = self._host[key] if key in self._host else self._on_disk.place(key, shape.numel(), self._dtype)
        self._lanes.d2h.wait(self._lanes.compute.record())
        self._lanes.d2h.run(copy_async, x, place[: shape.numel()].view(shape))
        self._saved[key] = self._lanes.d2h.record()
        self._leaving.append((x, self._saved[key]))
        if key not in self._host:
            self._on_disk.filled(key, self._saved[key])

    def turn(self, order: Sequence[Key]) -> None:
        """Backward starts and will load boundaries in this order."""
        self._retire(keep=0)
        self._order = [key for key in order if key in self._off_device]
        if self._disk is not None:
            self._disk.expect(self._order)
        for _ in range(self.STAGING - 1):
            self._fetch_next()

    def load(self, i: int, m: int) -> Any:
        """The boundary, for computation submitted from here until `release(i, m)`.

        Raises:
            DiskError: it could not be written, or not be read.
        """
        key = (i, m)
        if key not in self._off_device:
            return self._kept[key]
        arrival = next(arrival for arrival in self._arrivals if arrival.key == key)
        if arrival.ready is None:
            self._on_disk.arrive(key)
            self._submit(arrival)
        assert arrival.ready is not None
        self._lanes.compute.wait(arrival.ready)
        return arrival.flat[: self._shapes[key].numel()].view(self._shapes[key])

    def release(self, i: int, m: int) -> None:
        """Computation submitted so far was the last to read the boundary; the next one is fetched."""
        if self._kept.pop((i, m), None) is not None:
            return
        arrival = next(arrival for arrival in self._arrivals if arrival.key == (i, m))
        arrival.key, arrival.free = None, self._lanes.compute.record()
        self._fetch_next()

    def clear(self) -> None:
        """Forget everything saved (after forward-only use or a failed step)."""
        self._retire(keep=0)
        self._kept.clear()

    @property
    def _on_disk(self) -> BoundariesOnDisk:
        assert self._disk is not None
        return self._disk

    def _fetch_next(self) -> None:
        arrival = next((arrival for arrival in self._arrivals if arrival.key is None), None)
        if arrival is not None and self._order:
            arrival.key, arrival.ready = self._order.pop(0), None
        for waiting in self._arrivals:
            if waiting.key is not None and waiting.ready is None and self._is_here(waiting.key):
                self._submit(waiting)

    def _is_here(self, key: Key) -> bool:
        return key in self._host or self._on_disk.ready(key)

    def _submit(self, arrival: Arrival) -> None:
        assert arrival.key is not None
        key, numel = arrival.key, self._shapes[arrival.key].numel()
        source = self._host[key] if key in self._host else self._on_disk.memory_of(key, self._dtype)
        if arrival.free is not None:
            self._lanes.h2d.wait(arrival.free)
        self._lanes.h2d.wait(self._saved[key])
        self._lanes.h2d.run(copy_async, source[:numel], arrival.flat[:numel])
        arrival.ready = self._lanes.h2d.record()
        if key not in self._host:
            self._on_disk.sent(key, arrival.ready)

    def _retire(self, keep: int) -> None:
        """Let go of boundaries that have left; compute waits for their copies, so their memory may be reused."""
        while len(self._leaving) > keep:
            self._lanes.compute.wait(self._leaving.pop(0)[1])
