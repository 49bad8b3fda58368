"""Records in one file, and the weights of some of them in another, from where they can be read alone."""

from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path

from slideformer.storage.disk import DiskFile, padded


class RecordFiles:
    """Reads and writes records as `DiskFile` does; the weights, of those that have them there, are its start.

    Args:
        record_bytes: record -> its size, without weights.
        weight_bytes: record -> size of its weights, of those whose weights are on disk, too.

    Attributes:
        rest, weights: the two files; no `weights` where none are on disk.

    Raises:
        DiskError: there is no room for both.
    """

    def __init__(self, directory: Path, record_bytes: Mapping[str, int], weight_bytes: Mapping[str, int]):
        self._weights_end = {name: padded(size) for name, size in weight_bytes.items()}
        self._whole_of = {weights_of(name): name for name in weight_bytes}
        self.weights: DiskFile | None = None
        with ExitStack() as closing:
            self.rest = DiskFile(directory, record_bytes)
            closing.callback(self.rest.close)
            if weight_bytes:
                self.weights = DiskFile(directory, weight_bytes, "weights")
            closing.pop_all()

    @staticmethod
    def memory_needed(record_bytes: Mapping[str, int], weight_bytes: Mapping[str, int]) -> int:
        """For the largest record."""
        return max((padded(size) + padded(weight_bytes.get(name, 0)) for name, size in record_bytes.items()), default=0)

    def read(self, name: str, into: memoryview) -> "Future[None]":
        """Fill the start of `into` with a record, or with its weights alone where that is `weights_of` a name."""
        if self.weights is not None and name in self._whole_of:
            return self.weights.read(self._whole_of[name], into)
        end = self._weights_end.get(name, 0)
        rest = self.rest.read(name, into[end:])
        return rest if self.weights is None or not end else both(self.weights.read(name, into), rest)

    def write(self, name: str, data: memoryview) -> "Future[None]":
        """Write a record, with its weights."""
        end = self._weights_end.get(name, 0)
        weights = self.weights.write(name, data) if self.weights is not None and end else None  # needed again first
        rest = self.rest.write(name, data[end:])
        return rest if weights is None else both(weights, rest)

    def close(self) -> None:
        """Wait for what was asked for, and give the space back."""
        self.rest.close()
        if self.weights is not None:
            self.weights.close()


def weights_of(name: str) -> str:
    """What a record's weights are asked for by."""
    return f"weights of {name}"


def both(one: "Future[None]", other: "Future[None]") -> "Future[None]":
    """Done when both are; fails as the first that failed."""
    done: Future[None] = Future()

    def settle(_: "Future[None]") -> None:
        error = one.exception() or other.exception()
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    one.add_done_callback(lambda _: other.add_done_callback(settle))
    return done
