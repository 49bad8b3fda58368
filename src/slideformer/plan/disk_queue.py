"""The disk's part of a schedule: records read before their updates and written behind them, through a few buffers."""

from bisect import insort
from dataclasses import dataclass
from typing import NamedTuple

REMEMBERED = 32  # pieces of work between which the disk may have time for another


class Span(NamedTuple):
    """A piece of work on a lane (one of `schedule.LANES`), in seconds from the step's beginning."""

    lane: str
    what: str
    start: float
    stop: float


@dataclass(eq=False)
class Pending:
    """An update that has not run."""

    unit: str
    seconds: float
    next_use: int
    runnable: float
    write: float = 0.0
    arrived: float = 0.0  # its record, from the disk

    @property
    def ready(self) -> float:
        return max(self.runnable, self.arrived)


class Staging:
    """Buffers between the disk and the GPU, each taken again when its use is over."""

    def __init__(self, buffers: int):
        self._free = [0.0] * buffers

    def take(self) -> float:
        """From when there is one."""
        return self._free.pop(0)

    def give_back(self, moment: float) -> None:
        """Its use is over then."""
        self._free.append(moment)


class DiskQueue:
    """Records that pass through a few buffers, each read before its update and written behind it.

    One disk does both, so what is read has to fit between what is written.

    Args:
        spans: of the whole schedule, to which those of the disk are added.
        buffers: records in memory at once.

    Attributes:
        written: unit -> when its record is on disk again.
    """

    def __init__(self, spans: list[Span], buffers: int):
        self._spans = spans
        self._free = [0.0] * buffers  # from when each is
        self._waiting: list[tuple[Pending, float, float]] = []
        self._busy: list[tuple[float, float]] = []
        self._begin = 0.0  # gaps before it are forgotten
        self.written: dict[str, float] = {}

    def expect(self, update: Pending, seconds: float, known: float) -> None:
        """The update's record is wanted, which is known from some point in time on."""
        update.arrived = float("inf")
        self._waiting.append((update, seconds, known))
        self._bring()

    def write_back(self, update: Pending, updated: float) -> None:
        """Behind it the buffer is the next record's."""
        self.written[update.unit] = self.run(f"write {update.unit}", update.write, updated)
        self._free.append(self.written[update.unit])
        self._bring()

    def _bring(self) -> None:
        while self._waiting and self._free:
            update, seconds, known = self._waiting.pop(0)
            update.arrived = self.run(f"read {update.unit}", seconds, max(known, self._free.pop(0)))

    def run(self, what: str, seconds: float, earliest: float) -> float:
        """Work for the disk, in the first gap that is long enough; returns its end."""
        start = max(earliest, self._begin)
        for begin, end in self._busy:
            if end > start:
                if begin - start >= seconds:
                    break
                start = end
        stop = start + seconds
        insort(self._busy, (start, stop))
        if len(self._busy) > REMEMBERED:
            self._begin = self._busy.pop(0)[1]
        self._spans.append(Span("disk", what, start, stop))
        return stop
