"""One run at a time in an output directory."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slideformer.errors import ConfigError

LOCK_FILE = ".lock"  # stays: removing it would let two runs hold two files of that name


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Create `directory` and hold it; the system lets go when the process ends, however it ends.

    Raises:
        ConfigError: it cannot be written to, or another run holds it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        message = f"output_dir: cannot write to {directory}: {error.strerror}"
        raise ConfigError(message, "give a directory in which you may create files") from None
    try:
        _take(descriptor, directory)
        yield
    finally:
        os.close(descriptor)


def is_locked(directory: Path) -> bool:
    """Whether a run holds `directory` now; changes nothing there."""
    try:
        descriptor = os.open(directory / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go by the close, a moment later
        return False
    except OSError:
        return True
    finally:
        os.close(descriptor)


def _take(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.read(descriptor, 20).decode("ascii", "replace").strip()
        message = f"output_dir: {directory} is in use by another run (process {owner or 'unknown'})"
        raise ConfigError(message, "wait for it, or give this run another output_dir") from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
