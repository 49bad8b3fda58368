"""The blocks' weights as the window takes them: in host memory, or read from the disk ahead of their use."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from slideformer.engine.durable import DurableState
from slideformer.engine.updates import Updates
from slideformer.memory.disk_staging import DiskStaging
from slideformer.memory.disk_state import DiskState, weight_bytes
from slideformer.memory.host import HostAllocator
from slideformer.memory.record_ring import AllInMemory, RecordRing
from slideformer.streams import Fence


class BlockWeights:
    """A block is fresh when no update of it is pending and its weights are in memory.

    What an update writes back is in the file's queue before the update counts as run, so what is read then is what it
    wrote.

    Args:
        buffers: weights from the disk that are in host memory at once.
    """

    def __init__(
        self,
        blocks: Sequence[DurableState],
        updates: Updates,
        records: RecordRing | AllInMemory,
        allocator: HostAllocator,
        dtype: torch.dtype,
        buffers: int,
    ):
        self._blocks, self._updates = blocks, updates
        self._on_disk = {i: b for i, b in enumerate(blocks) if isinstance(b, DiskState) and b.weights_on_disk}
        self._staging = None
        if isinstance(records, RecordRing) and records.files.weights is not None:
            sizes = {block.name: weight_bytes(block.layout, dtype) for block in self._on_disk.values()}
            self._staging = DiskStaging(
                records.files.weights, sizes, allocator, buffers, "weights from disk", updates.fresh
            )  # fmt: skip

    def fresh(self, i: int) -> bool:
        """Whether `copy_of` gives block i as its last update left it. Raises what failed."""
        fresh, staging = self._updates.fresh(self._blocks[i].name), self._staging_of(i)
        return fresh and (staging is None or staging.ready(self._blocks[i].name))

    def wait_fresh(self, i: int) -> None:
        """Until `fresh`."""
        self._updates.wait_fresh(self._blocks[i].name)
        if staging := self._staging_of(i):
            staging.arrive(self._blocks[i].name)

    def copy_of(self, i: int) -> Callable[[int, Tensor], None]:
        """What copies block i's weights, which are fresh, to a tensor [numel] on any device."""
        staging = self._staging_of(i)
        if staging is None:
            return self._copy
        record = staging.memory_of(self._blocks[i].name)

        def copy_record(i: int, out: Tensor) -> None:
            self._on_disk[i].copy_record(record, out)

        return copy_record

    def _copy(self, i: int, out: Tensor) -> None:
        self._blocks[i].copy_weights(out)

    # ---- what the window tells

    def expect(self, layers: Sequence[int]) -> None:
        if self._staging is not None:
            self._staging.expect([self._blocks[i].name for i in layers if i in self._on_disk])

    def skip(self, i: int) -> None:
        if staging := self._staging_of(i):
            staging.skip(self._blocks[i].name)

    def sent(self, i: int, fence: Fence) -> None:
        if staging := self._staging_of(i):
            staging.sent(self._blocks[i].name, fence)

    def forget(self, i: int) -> None:
        if staging := self._staging_of(i):
            staging.forget(self._blocks[i].name)

    def _staging_of(self, i: int) -> DiskStaging | None:
        return self._staging if i in self._on_disk else None
