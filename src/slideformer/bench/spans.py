"""Spans: what ran in a lane from when to when, and what follows from them: busy, exposed and idle seconds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

COMPUTE, H2D, D2H, UPDATE, ADAMW = LANES = ("compute", "h2d", "d2h", "update", "adamw")
Interval = tuple[float, float]


@dataclass(frozen=True)
class Span:
    """One piece of work; seconds since the recording began."""

    lane: str
    name: str
    begin: float
    end: float


@dataclass(frozen=True)
class Breakdown:
    """Where the recorded seconds went.

    Attributes:
        seconds: from the first counted step's begin until its last update's end.
        busy: seconds in which a lane runs something, by lane.
        exposed: seconds in which a lane runs something while compute runs nothing, by lane. Lanes overlap, so that they
            may add up to more than compute's gaps.
        idle: seconds in which no lane runs anything.
    """

    seconds: float
    busy: dict[str, float]
    exposed: dict[str, float]
    idle: float

    @property
    def bound(self) -> str:
        """The lane that is busy the longest: no step is shorter than it."""
        return max(self.busy, key=lambda lane: self.busy[lane])

    def break_even_tokens(self, tokens: int) -> float | None:
        """Of a step, from which on computation takes longer than AdamW; None where nothing was computed."""
        compute = self.busy[COMPUTE]
        return tokens * self.busy[ADAMW] / compute if compute else None


def break_down(spans: Sequence[Span], seconds: float) -> Breakdown:
    by_lane = {lane: union((s.begin, s.end) for s in spans if s.lane == lane) for lane in LANES}
    compute, everything = by_lane[COMPUTE], union((s.begin, s.end) for s in spans)
    busy = {lane: length(intervals) for lane, intervals in by_lane.items()}
    exposed = {
        lane: length(union([*compute, *intervals])) - length(compute)
        for lane, intervals in by_lane.items()
        if lane != COMPUTE
    }
    return Breakdown(seconds, busy, exposed, max(0.0, seconds - length(everything)))


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same moments as disjoint intervals in order."""
    merged: list[Interval] = []
    for begin, end in sorted(intervals):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return merged


def length(disjoint: Iterable[Interval]) -> float:
    return sum(end - begin for begin, end in disjoint)
