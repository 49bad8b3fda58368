"""Many steps as few points, without losing an extreme."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

MOST_POINTS = 600  # of a curve: about what the eye can tell apart across a page
FEWEST_SMOOTHED = 50  # steps: fewer are read better as they are


@dataclass(frozen=True)
class Bucket:
    """One or more steps in a row, as one point of a curve; NaN where none of its values is finite."""

    mean: float
    low: float
    high: float

    @property
    def is_gap(self) -> bool:
        return math.isnan(self.mean)


def bucket_size(count: int, most: int = MOST_POINTS) -> int:
    """How many of `count` values in a row become one point, so that there are at most `most` points."""
    return max(1, -(-count // most))


def bucketed(values: Sequence[float], size: int) -> list[Bucket]:
    """`size` values at a time; the last bucket may hold fewer."""
    return [_bucket(values[start : start + size]) for start in range(0, len(values), size)]


def smoothed(values: Sequence[float], span: float) -> list[float]:
    """Mean of each value and its neighbours on both sides, about `span` of them; NaN stays NaN and is passed over.

    A neighbour's weight is exp(-2 distance / span). Looking both ways the curve does not lag behind the values, as the
    moving mean of a run that is still going on would.
    """
    keep = math.exp(-2 / span)
    before, after = _decaying_sums(values, keep), _decaying_sums(values[::-1], keep)[::-1]
    means = []
    for value, (sum_before, weight_before), (sum_after, weight_after) in zip(values, before, after, strict=True):
        both = sum_before + sum_after - value, weight_before + weight_after - 1  # the value itself is in either sum
        means.append(both[0] / both[1])
    return means


def _decaying_sums(values: Sequence[float], keep: float) -> list[tuple[float, float]]:
    """At each value, the weighted sum of it and all earlier ones, and the sum of the weights: 1, keep, keep^2, ..."""
    total = weight = 0.0
    sums = []
    for value in values:
        is_there = not math.isnan(value)
        total, weight = keep * total + (value if is_there else 0.0), keep * weight + is_there
        sums.append((total, weight) if is_there else (math.nan, 1.0))
    return sums


def smoothing_span(count: int) -> int:
    """Steps to smooth over: a hundredth of the run, and at least 10; 0 where smoothing would only hide."""
    return 0 if count < FEWEST_SMOOTHED else max(10, count // 100)


def finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _bucket(values: Sequence[float]) -> Bucket:
    there = finite(values)
    if not there:
        return Bucket(math.nan, math.nan, math.nan)
    return Bucket(math.fsum(there) / len(there), min(there), max(there))
