"""Boundary activations that go on to disk: a record for each layer and micro-batch, through a few pinned buffers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from slideformer.memory.disk_staging import DiskStaging
from slideformer.memory.host import HostAllocator
from slideformer.storage.disk import DiskFile
from slideformer.streams import Fence

Key = tuple[int, int]  # layer, micro-batch


class BoundariesOnDisk:
    """Takes boundaries in the order of forward, and gives them back in that of backward.

    Args:
        file: made for `boundary_records` of the same layers; closed by whoever opened it.
        names: of the layers, the first ones, whose boundaries are here.
        micro_batches, boundary_bytes: how many boundaries a layer has at most, and bytes of the largest.
        buffers: boundaries in host memory at once.

    Attributes:
        records: (layer, micro-batch) -> the name of its record.
    """

    def __init__(
        self,
        file: DiskFile,
        names: Sequence[str],
        micro_batches: int,
        boundary_bytes: int,
        allocator: HostAllocator,
        buffers: int,
    ):
        self.records = {(i, m): record_of(name, m) for i, name in enumerate(names) for m in range(micro_batches)}
        sizes = boundary_records(names, micro_batches, boundary_bytes)
        self._staging = DiskStaging(file, sizes, allocator, min(buffers, len(sizes)), "activations")

    @staticmethod
    def host_bytes_needed(layers: int, micro_batches: int, boundary_bytes: int, buffers: int) -> int:
        records = layers * micro_batches
        return DiskStaging.bytes_needed({"each": boundary_bytes}, min(buffers, records)) if records else 0

    def place(self, key: Key, numel: int, dtype: torch.dtype) -> Tensor:
        """Where a boundary of `numel` elements is to be copied to, before `filled`; waits for room."""
        return self._staging.place(self.records[key], numel * dtype.itemsize).view(dtype)

    def filled(self, key: Key, fence: Fence) -> None:
        """Behind the fence it has been copied there."""
        self._staging.filled(self.records[key], fence)

    def expect(self, order: Sequence[Key]) -> None:
        """Boundaries will be used in this order; those that are not here are passed over."""
        self._staging.expect([self.records[key] for key in order if key in self.records])

    def ready(self, key: Key) -> bool:
        """Whether `arrive` would not wait."""
        return self._staging.ready(self.records[key])

    def arrive(self, key: Key) -> None:
        """Wait for a boundary."""
        self._staging.arrive(self.records[key])

    def memory_of(self, key: Key, dtype: torch.dtype) -> Tensor:
        """Where a boundary is that has arrived."""
        return self._staging.memory_of(self.records[key]).view(dtype)

    def sent(self, key: Key, fence: Fence) -> None:
        """Behind the fence it has been copied to the device."""
        self._staging.sent(self.records[key], fence)


def boundary_records(names: Sequence[str], micro_batches: int, boundary_bytes: int) -> dict[str, int]:
    """Record -> its size, of the boundaries of these layers."""
    return {record_of(name, m): boundary_bytes for name in names for m in range(micro_batches)}


def record_of(name: str, micro_batch: int) -> str:
    return f"{name}, micro-batch {micro_batch}"
