"""The buffers through which records on disk pass for their updates."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from slideformer.memory.host import HostAllocator
from slideformer.storage.record_files import RecordFiles

BUFFERS = 4  # one is updated, two arrive, one is written back


class RecordRing:
    """The buffers through which records pass, and what is on its way.

    `expect` brings records before they are needed; `borrow` gives one. Whatever was or was not expected, `borrow` is
    right: a wrong guess only costs time. Both may be called from any thread.

    Args:
        record_bytes: unit -> size of its record, without weights.
        weight_bytes: unit -> size of its weights, of those whose weights are on disk, too.
        buffers: how many; with fewer than `BUFFERS` the disk and AdamW wait for each other more often.

    Attributes:
        files: where the records are.
    """

    holds_any = True

    def __init__(
        self,
        directory: Path,
        record_bytes: Mapping[str, int],
        allocator: HostAllocator,
        buffers: int = BUFFERS,
        weight_bytes: Mapping[str, int] | None = None,
    ):
        self.files = RecordFiles(directory, record_bytes, weight_bytes or {})  # first: no room is known before memory
        size = RecordFiles.memory_needed(record_bytes, weight_bytes or {})
        self._units = frozenset(record_bytes)
        with ExitStack() as opened:
            opened.callback(self.files.close)
            self.buffers = [allocator.empty("disk buffers", (size,), torch.uint8) for _ in range(buffers)]
            opened.pop_all()
        self._memory = [buffer.numpy().data for buffer in self.buffers]
        self._changed = threading.Condition()
        self._free = list(range(buffers))
        self._arriving: dict[str, tuple[int, Future[None]]] = {}
        self._borrowed: set[str] = set()  # what the disk has of them is about to be the past
        self._in_use = 0  # buffers that are borrowed or being written: they come back by themselves
        self._error: BaseException | None = None

    @staticmethod
    def bytes_needed(
        record_bytes: Mapping[str, int], buffers: int = BUFFERS, weight_bytes: Mapping[str, int] | None = None
    ) -> int:
        """In host memory."""
        return buffers * RecordFiles.memory_needed(record_bytes, weight_bytes or {})

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
        background. Instead of a unit it may be `weights_of(unit)`, not to be changed.

        Raises:
            DiskError: the record could not be read, or an earlier one not written.
        """
        buffer, arrived = self._take(unit)
        written = None
        try:
            arrived.result()
            yield buffer
            if change:
                written = self.files.write(unit, self._memory[buffer])
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
        self.files.close()

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
        self._arriving[unit] = buffer, self.files.read(unit, self._memory[buffer])

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
