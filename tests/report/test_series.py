"""Fewer points than steps, with every extreme kept and every gap left a gap."""

import math
import random

import pytest

from slideformer.report.series import MOST_POINTS, bucket_size, bucketed, smoothed, smoothing_span


@pytest.mark.parametrize("count", [1, MOST_POINTS, MOST_POINTS + 1, 100_000])
def test_there_are_never_too_many_points(count: int):
    points = bucketed([1.0] * count, bucket_size(count))
    assert min(count, MOST_POINTS // 2) <= len(points) <= MOST_POINTS


def test_extremes_and_mean_survive():
    draw = random.Random(0)
    values = [draw.gauss(0, 1) for _ in range(10_000)]
    values[1234], values[8765] = 99.0, -99.0
    size = bucket_size(len(values))
    buckets = bucketed(values, size)
    assert max(b.high for b in buckets) == buckets[1234 // size].high == 99.0
    assert min(b.low for b in buckets) == buckets[8765 // size].low == -99.0
    weights = [min(size, len(values) - i * size) for i in range(len(buckets))]
    mean = sum(b.mean * weight for b, weight in zip(buckets, weights, strict=True)) / len(values)
    assert mean == pytest.approx(sum(values) / len(values))


def test_a_bucket_passes_over_gaps_and_is_one_where_nothing_is_left():
    some, none = bucketed([1.0, math.nan, 3.0, math.nan, math.nan, math.nan], 3)
    assert (some.mean, some.low, some.high) == (2.0, 1.0, 3.0)
    assert none.is_gap


def test_smoothing_is_a_weighted_mean_of_both_sides():
    values, span = [3.0, math.nan, 1.0, 4.0, 1.5], 4.0
    result = smoothed(values, span)
    for i, got in enumerate(result):
        weights = [math.exp(-2 * abs(i - j) / span) for j in range(len(values))]
        there = [j for j in range(len(values)) if not math.isnan(values[j])]
        wanted = sum(weights[j] * values[j] for j in there) / sum(weights[j] for j in there)
        assert math.isnan(got) if i == 1 else got == pytest.approx(wanted)


def test_smoothing_does_not_lag_behind_a_slope():
    line = [float(i) for i in range(200)]
    assert smoothed(line, 10)[100] == pytest.approx(100.0)


def test_short_runs_are_not_smoothed():
    assert [smoothing_span(count) for count in (5, 49, 50, 5000)] == [0, 0, 10, 50]
