"""Boundary activations: the input of each block, kept from forward until its recomputation in backward."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slideformer.lanes.lanes import Fence, Lanes
from slideformer.memory.gradients import copy_async
from slideformer.memory.host import HostAllocator


@dataclass(eq=False)
class Staged:
    """A device buffer for one boundary on its way back."""

    flat: Tensor
    key: tuple[int, int] | None = None
    ready: Fence | None = None
    free: Fence | None = None


class ActivationStore:
    """Keeps x[layer, micro-batch] on the device or in host memory.

    Args:
        host_layers: layers whose boundaries go to host memory; the others stay on the device.
        micro_batches, elements: how many boundaries a layer has at most, and the elements of the largest.
        width: last dimension of a boundary.
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
    ):
        self._lanes = lanes
        self._host_layers = sorted(host_layers)
        self._host = {
            (i, m): allocator.empty("activations", (elements,), dtype, pinned=True)
            for i in self._host_layers
            for m in range(micro_batches)
        }
        staging = self.STAGING if self._host_layers else 0
        self._staging = [Staged(torch.empty(elements, dtype=dtype, device=lanes.device)) for _ in range(staging)]
        self._kept: dict[tuple[int, int], Any] = {}
        self._leaving: list[tuple[Any, Fence]] = []  # (boundary, copied out): memory not to be reused before
        self._saved: dict[tuple[int, int], Fence] = {}
        self._shapes: dict[tuple[int, int], torch.Size] = {}
        self._order: list[tuple[int, int]] = []

    @staticmethod
    def device_bytes_needed(layers: int, host_layers: int, micro_batches: int, elements: int, itemsize: int) -> int:
        staging = ActivationStore.STAGING if host_layers else 0
        return ((layers - host_layers) * micro_batches + staging) * elements * itemsize

    @staticmethod
    def host_bytes_needed(host_layers: int, micro_batches: int, elements: int, itemsize: int) -> int:
        return host_layers * micro_batches * elements * itemsize

    def save(self, i: int, m: int, x: Any, shape: torch.Size) -> None:
        """Keep x (of `shape`), the input of block i for micro-batch m; x may be reused once the caller drops it."""
        key = (i, m)
        if key not in self._host:
            self._kept[key] = x
            return
        self._retire(keep=self.STAGING)
        self._shapes[key] = shape
        self._lanes.d2h.wait(self._lanes.compute.record())
        self._lanes.d2h.run(copy_async, x, self._host[key][: shape.numel()].view(shape))
        self._saved[key] = self._lanes.d2h.record()
        self._leaving.append((x, self._saved[key]))

    def turn(self, order: Sequence[tuple[int, int]]) -> None:
        """Backward starts and will load boundaries in this order."""
        self._retire(keep=0)
        self._order = [key for key in order if key in self._host]
        for _ in range(self.STAGING - 1):
            self._fetch_next()

    def load(self, i: int, m: int) -> Any:
        """The boundary, for computation submitted from here until `release(i, m)`."""
        key = (i, m)
        if key not in self._host:
            return self._kept[key]
        staged = next(staged for staged in self._staging if staged.key == key)
        assert staged.ready is not None
        self._lanes.compute.wait(staged.ready)
        return staged.flat[: self._shapes[key].numel()].view(self._shapes[key])

    def release(self, i: int, m: int) -> None:
        """Computation submitted so far was the last to read the boundary; the next one is fetched."""
        if self._kept.pop((i, m), None) is not None:
            return
        staged = next(staged for staged in self._staging if staged.key == (i, m))
        staged.key, staged.free = None, self._lanes.compute.record()
        self._fetch_next()

    def clear(self) -> None:
        """Forget everything saved (after forward-only use or a failed step)."""
        self._retire(keep=0)
        self._kept.clear()

    def _fetch_next(self) -> None:
        staged = next((staged for staged in self._staging if staged.key is None), None)
        if staged is None or not self._order:
            return
        key = self._order.pop(0)
        if staged.free is not None:
            self._lanes.h2d.wait(staged.free)
        self._lanes.h2d.wait(self._saved[key])
        numel = self._shapes[key].numel()
        self._lanes.h2d.run(copy_async, self._host[key][:numel], staged.flat[:numel])
        staged.key, staged.ready = key, self._lanes.h2d.record()

    def _retire(self, keep: int) -> None:
        """Let go of boundaries that have left; compute waits for their copies, so their memory may be reused."""
        while len(self._leaving) > keep:
            self._lanes.compute.wait(self._leaving.pop(0)[1])
