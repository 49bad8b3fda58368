"""Records of fixed sizes in one preallocated file without a name, read and written whole, past the page cache.

The file has no name, so nothing is left of it once the process ends, however it ends. Every record is summed when it
is written and compared when it is read: the 64-bit words of each 4 KiB are added, and the sums hashed with CRC-32. That
costs about a tenth of CRC-32 over all bytes (benchmarks/disk.py measures both), and still notices flipped bits, and
sectors that are zero, stale or in each other's place.
"""

import errno
import fcntl
import mmap
import os
import tempfile
import threading
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from slideformer.errors import DiskError
from slideformer.units import MIB, format_bytes

ALIGN_BYTES = 4096  # of places, lengths and memory: what O_DIRECT asks of common disks
CHUNK_BYTES = 16 * MIB  # of one system call
THREADS = 2  # one reads while the other writes
REMEDY = "continue from the last checkpoint, with budget.offload_dir on another disk or without it"


class DiskFile:
    """Records by name, each of a fixed size, moved by background threads.

    Operations on one record run in the order in which they were asked for. After a failed one, every later one on this
    record fails, too: what the file holds is then not known. A record that was never written reads as zeros.

    Args:
        directory: where the file's space is taken, at once.
        record_bytes: record -> its size.
        what: what a record holds of the block (or what else) that it is named after, in words.

    Attributes:
        direct: whether reads and writes go past the page cache; not every file system can (some tmpfs cannot).

    Raises:
        DiskError: there is no room, or no file can be made there.
    """

    def __init__(self, directory: Path, record_bytes: Mapping[str, int], what: str = "state"):
        self.directory, self.what = directory, what
        self._sizes = {name: padded(size) for name, size in record_bytes.items()}
        starts = np.cumsum([0, *self._sizes.values()]).tolist()
        self._starts = dict(zip(self._sizes, starts, strict=False))
        self._sums: dict[str, int] = {}
        self._latest: dict[str, Future[None]] = {}
        self._lock = threading.Lock()
        with ExitStack() as opened:
            self._file = _open_nameless(directory, starts[-1])
            opened.callback(os.close, self._file)
            self.direct = _go_direct(self._file)
            opened.pop_all()
        self._threads = ThreadPoolExecutor(THREADS, "disk")

    @staticmethod
    def bytes_needed(record_bytes: Mapping[str, int]) -> int:
        """On the disk."""
        return sum(map(padded, record_bytes.values()))

    def read(self, name: str, into: memoryview) -> Future[None]:
        """Fill the start of `into`, page-aligned memory of at least the record's padded size, or of what was written.

        The future raises DiskError if the record cannot be read, or is not what was written.
        """
        return self._submit(name, self._read, into)

    def write(self, name: str, data: memoryview) -> Future[None]:
        """Write the start of `data`, page-aligned memory of at least the record's padded size, to be left alone until
        the future is done; less memory, of whole pages, is written as a shorter record. The future raises DiskError if
        the record cannot be written."""
        return self._submit(name, self._write, data)

    def close(self) -> None:
        """Wait for what was asked for, and give the space back."""
        self._threads.shutdown(wait=True)
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def _submit(self, name: str, work: Callable[[str, memoryview], None], memory: memoryview) -> Future[None]:
        with self._lock:
            before = self._latest.get(name)
            self._latest[name] = done = self._threads.submit(_after, before, work, name, memory[: self._sizes[name]])
        return done

    def _read(self, name: str, into: memoryview) -> None:
        if name not in self._sums:
            np.frombuffer(into, np.uint8)[:] = 0
            return
        self._transfer(os.preadv, "read", name, into)
        if checksum(into) != self._sums[name]:
            raise DiskError(
                f"the {self.what} of {name} in {self.directory} is not what was written there: its checksum is another",
                f"check the disk; {REMEDY}",
            )

    def _write(self, name: str, data: memoryview) -> None:
        summed = checksum(data)
        self._transfer(os.pwritev, "write", name, data)
        self._sums[name] = summed

    def _transfer(self, call: Callable[..., int], verb: str, name: str, memory: memoryview) -> None:
        """Move all of `memory`; a call may move less than it was asked to, and is then asked for the rest."""
        done, start = 0, self._starts[name]
        failed = f"cannot {verb} the {self.what} of {name} in {self.directory}"
        while done < len(memory):
            try:
                moved = call(self._file, [memory[done : done + CHUNK_BYTES]], start + done)
            except OSError as error:
                raise DiskError(f"{failed}: {error.strerror or error}", REMEDY) from error
            whole = moved - moved % ALIGN_BYTES
            if whole <= 0:
                raise DiskError(f"{failed}: only {done + moved:,} of {len(memory):,} bytes", REMEDY)
            done += whole


def padded(size_bytes: int) -> int:
    """The place that a record takes."""
    return -(-size_bytes // ALIGN_BYTES) * ALIGN_BYTES


def checksum(memory: memoryview) -> int:
    """Of whole pages: CRC-32 of the sum, modulo 2^64, of each page's 64-bit words."""
    words = np.frombuffer(memory, np.uint64).reshape(-1, ALIGN_BYTES // 8)
    return zlib.crc32(np.add.reduce(words, axis=1).data)


def _after(before: Future[None] | None, work: Callable[[str, memoryview], None], name: str, memory: memoryview) -> None:
    """Threads take work in order, so what is waited for here has begun: this cannot wait forever."""
    if before is not None:
        before.result()
    work(name, memory)


def _open_nameless(directory: Path, size_bytes: int) -> int:
    try:
        descriptor, name = tempfile.mkstemp(prefix=".slideformer-", dir=directory)
    except OSError as error:
        raise DiskError(
            f"cannot make a file in {directory}: {error.strerror}", "set budget.offload_dir to a directory to write in"
        ) from error
    with ExitStack() as opened:
        opened.callback(os.close, descriptor)
        try:
            os.unlink(name)
            if size_bytes:
                os.posix_fallocate(descriptor, 0, size_bytes)
        except OSError as error:
            raise DiskError(
                f"cannot take {format_bytes(size_bytes)} in {directory}: {error.strerror}",
                "free space there, lower budget.disk, or set budget.offload_dir to another disk",
            ) from error
        opened.pop_all()
    return descriptor


def _go_direct(descriptor: int) -> bool:
    """Switch the page cache off, where the file system can do without."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_DIRECT)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        return False
    if _can_read(descriptor):
        return True
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_DIRECT)
    return False


def _can_read(descriptor: int) -> bool:
    """Some file systems take the flag and then refuse the alignment."""
    with mmap.mmap(-1, ALIGN_BYTES) as page:
        try:
            os.preadv(descriptor, [page], 0)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
    return True
