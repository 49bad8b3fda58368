"""Pinned buffers between the disk and the device: what comes from the disk is read ahead, in the order of its use, and
what goes there is written as soon as the device has copied it.

Only the engine's main thread calls this. It waits for the disk where a record is needed now, and for a copy of the
device where all buffers are in use; everywhere else it looks what is done and goes on.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from slideformer.memory.host import HostAllocator
from slideformer.storage.disk import DiskFile, padded
from slideformer.streams import Fence


@dataclass(eq=False)
class Staged:
    """A buffer, and what it is used for.

    Attributes:
        record: what it holds, or will; it may be used again until another record needs the place.
        moved: by the disk, from or to it.
        fence: behind it the device's copy from or to it is over.
        unwritten: whether it has still to go to the disk; its record is then nowhere else.
        from_device: whether its record came from there, and so is here behind the fence.
    """

    memory: Tensor
    record: str | None = None
    moved: "Future[None] | None" = None
    fence: Fence | None = None
    unwritten: bool = False
    from_device: bool = False

    def idle(self) -> bool:
        return (
            not self.unwritten
            and (self.moved is None or self.moved.done())
            and (self.fence is None or self.fence.done())
        )


class DiskStaging:
    """Records on their way from a file to the device.

    `expect` names what will be used, in order; whatever was or was not expected, `arrive` is right.

    Args:
        file: closed by whoever opened it.
        record_bytes: of the file's records.
        label: what the buffers' memory is counted under.
        may_read: whether what the file holds of a record is what it will be when it is used; by default it always is.
    """

    def __init__(
        self,
        file: DiskFile,
        record_bytes: Mapping[str, int],
        allocator: HostAllocator,
        buffers: int,
        label: str,
        may_read: Callable[[str], bool] = lambda record: True,
    ):
        self._file, self._may_read = file, may_read
        sizes = [self.bytes_needed(record_bytes, 1)] * buffers
        # Ordered by when they were last used: the first that is free was used longest ago.
        self._buffers = [Staged(allocator.empty(label, (size,), torch.uint8, pinned=True)) for size in sizes]
        self._order: list[str] = []
        self._lengths: dict[str, int] = {}  # of records that are shorter than their place

    @staticmethod
    def bytes_needed(record_bytes: Mapping[str, int], buffers: int) -> int:
        """In host memory."""
        return buffers * max(map(padded, record_bytes.values()), default=0)

    def expect(self, records: Sequence[str]) -> None:
        """These will be used, in this order; forget what was expected before."""
        self._order = list(records)
        self._go_on()

    def skip(self, record: str) -> None:
        """The next use of a record needs no copy."""
        if record in self._order:
            self._order.remove(record)

    def ready(self, record: str) -> bool:
        """Whether `arrive` would not wait.

        Raises:
            DiskError: the record could not be read.
        """
        self._go_on()
        staged = self._holding(record)
        if staged is None or (not staged.from_device and (staged.moved is None or not staged.moved.done())):
            return False
        return self._arrived(staged)

    def arrive(self, record: str) -> Tensor:
        """Wait for a record; its memory [bytes, uint8], to be read by copies submitted before `sent`.

        Raises:
            DiskError: it could not be read.
        """
        if record not in self._soon():
            self._order.insert(0, record)  # nothing takes its place before it is sent
        staged = self._holding(record) or self._read(record, self._room())
        self._go_on()  # what comes behind it is on its way while this is waited for
        self._arrived(staged)
        return staged.memory

    def sent(self, record: str, fence: Fence) -> None:
        """Behind the fence the record has been copied to the device: its place is the next one's."""
        staged = self._holding(record)
        assert staged is not None, f"{record} is not there"
        staged.fence = fence
        self._put_last(staged)
        self.skip(record)
        self._go_on()

    def place(self, record: str, size_bytes: int) -> Tensor:
        """Memory [at least the record's bytes, uint8] for a record to be copied to from the device, before `filled`."""
        staged = self._holding(record) or self._room()
        self._empty(staged)
        self._lengths[record] = padded(size_bytes)
        staged.record, staged.moved, staged.from_device = record, None, True
        self._put_last(staged)
        return staged.memory

    def filled(self, record: str, fence: Fence) -> None:
        """Behind the fence the device's copy is over: the record can be written."""
        staged = self._holding(record)
        assert staged is not None, f"{record} has no place"
        staged.fence, staged.unwritten = fence, True
        self._go_on()

    def forget(self, record: str) -> None:
        """What a buffer may hold of the record is the past."""
        staged = self._holding(record)
        if staged is not None:
            staged.record = None

    def memory_of(self, record: str) -> Tensor:
        """Where a record is that has arrived."""
        staged = self._holding(record)
        assert staged is not None, f"{record} is not there"
        return staged.memory

    def _holding(self, record: str) -> Staged | None:
        return next((staged for staged in self._buffers if staged.record == record), None)

    def _arrived(self, staged: Staged) -> bool:
        if not staged.from_device:
            assert staged.moved is not None
            staged.moved.result()
        return True

    def _go_on(self) -> None:
        """Write what can be written, and read ahead."""
        for staged in self._buffers:
            if staged.unwritten and staged.fence is not None and staged.fence.done():
                self._write(staged)
            if staged.from_device and staged.moved is not None and staged.moved.done():
                staged.moved.result()  # a write that failed is told, whether or not its record is read again
        self._read_ahead()

    def _write(self, staged: Staged) -> None:
        assert staged.record is not None
        length = self._lengths[staged.record]
        staged.moved, staged.unwritten = self._file.write(staged.record, staged.memory[:length].numpy().data), False

    def _read_ahead(self) -> None:
        """Each of the records that are used next has a place of its own, so none takes that of an earlier one."""
        soon = self._soon()
        free = [staged for staged in self._buffers if staged.record not in soon and staged.idle()]
        missing = [record for record in soon if self._holding(record) is None][: len(free)]
        for record in filter(self._may_read, missing):
            self._read(record, free.pop(0))

    def _soon(self) -> list[str]:
        """What is used next, at most as many records as there are buffers."""
        return list(islice(dict.fromkeys(self._order), len(self._buffers)))

    def _read(self, record: str, staged: Staged) -> Staged:
        staged.record, staged.fence, staged.from_device = record, None, False
        staged.moved = self._file.read(record, staged.memory[: self._lengths.get(record)].numpy().data)
        self._put_last(staged)
        return staged

    def _room(self) -> Staged:
        """A buffer to fill; waits for one whose use is over first."""
        # Rather one that is idle, then one that is on its way to the device, then that which is used last.
        turn: dict[str | None, int] = {record: k for k, record in enumerate(self._soon())}
        staged = min(self._buffers, key=lambda b: (b.record in turn, -turn.get(b.record, 0), not b.idle()))
        self._empty(staged)
        return staged

    def _empty(self, staged: Staged) -> None:
        """Wait until nobody uses the buffer."""
        if staged.fence is not None:
            staged.fence.wait()
        if staged.unwritten:
            self._write(staged)
        if staged.moved is not None:
            staged.moved.exception()  # waits; what is wrong with it is told when its record is asked for again

    def _put_last(self, staged: Staged) -> None:
        self._buffers.remove(staged)
        self._buffers.append(staged)
