"""How fast a directory's file system reads and writes: O_DIRECT where it is supported, the page cache left out."""

import mmap
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from slideformer.errors import ConfigError
from slideformer.plan.rates import DiskRates
from slideformer.units import MIB

CHUNK_BYTES = 16 * MIB
FILE_BYTES = 512 * MIB


def measure_disk(directory: Path, file_bytes: int = FILE_BYTES) -> DiskRates:
    """Write a file there, read it again, and remove it.

    Raises:
        ConfigError: it cannot be written there.
    """
    try:
        with TemporaryDirectory(prefix=".slideformer-probe-", dir=directory) as place:
            return _measure(directory, Path(place) / "file", file_bytes)
    except OSError as error:
        raise ConfigError(
            f"cannot measure the disk of {directory}: {error.strerror}", hint="give a directory that can be written"
        ) from None


def _measure(directory: Path, path: Path, file_bytes: int) -> DiskRates:
    buffer = mmap.mmap(-1, CHUNK_BYTES)  # whole pages: O_DIRECT wants aligned memory
    buffer.write(os.urandom(MIB) * (CHUNK_BYTES // MIB))  # no file system compresses or shares it away
    chunks = -(-file_bytes // CHUNK_BYTES)
    descriptor = _open(path, os.O_RDWR | os.O_CREAT)
    try:
        started = time.perf_counter()
        for k in range(chunks):
            os.pwritev(descriptor, [buffer], k * CHUNK_BYTES)
        os.fsync(descriptor)
        wrote = time.perf_counter() - started
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        for k in range(chunks):
            os.preadv(descriptor, [buffer], k * CHUNK_BYTES)
        read = time.perf_counter() - started
    finally:
        os.close(descriptor)
        buffer.close()
    return DiskRates(str(directory), chunks * CHUNK_BYTES / read, chunks * CHUNK_BYTES / wrote)


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_DIRECT, 0o600)
    except OSError:
        return os.open(path, flags, 0o600)
