"""Gaps break lines, extremes reach the drawing, evaluations stand at their steps."""

import math
import re

from slideformer.report.curve import HEIGHT, WIDTH, Kind, Steps, draw

PLAIN = Kind("loss", "Loss", is_smoothed=False)
Point = tuple[float, float]


def points(path: str) -> list[Point]:
    return [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path)]


def test_a_line_runs_from_corner_to_corner():
    curve = draw(PLAIN, Steps.of([1, 2, 3]), [0.0, 1.0, 2.0])
    assert curve and points(curve.line) == [(0, HEIGHT), (WIDTH / 2, HEIGHT / 2), (WIDTH, 0)]
    assert curve.band == curve.smooth == curve.marks == ""


def test_a_gap_breaks_the_line_and_a_lonely_point_is_a_dot():
    curve = draw(PLAIN, Steps.of([1, 2, 3, 4, 5]), [0.0, 1.0, math.nan, 2.0, math.nan])
    assert curve and curve.line.count("M") == 2 and curve.line.endswith("h0")
    assert "nan" not in curve.line and curve.missing == [3, 5]
    assert curve.points["mean"] == [0.0, 1.0, None, 2.0, None]


def test_a_bucket_of_gaps_breaks_the_band():
    values = [math.nan if 1000 <= i < 1100 else 1.0 + i % 2 for i in range(6000)]
    curve = draw(PLAIN, Steps.of(range(1, 6001)), values)
    assert curve and curve.band.count("M") == curve.band.count("Z") == 2 and len(curve.missing) == 100


def test_one_spike_among_many_steps_is_drawn_and_read_out():
    values = [1.0] * 50_000
    values[31_415] = 9.0
    curve = draw(PLAIN, Steps.of(range(1, 50_001)), values)
    assert curve and min(y for _, y in points(curve.band)) < HEIGHT * 0.2
    assert max(high or 0 for high in curve.points["high"]) == 9.0
    assert len(curve.line) + len(curve.band) < 50_000


def test_evaluations_stand_at_their_steps_and_within_the_axis():
    steps = Steps.of([1, 2, 3, 4], others=[0, 4])
    curve = draw(PLAIN, steps, [2.0, 1.8, 1.6, 1.5], marks=[(0, 4.0), (4, 1.0)])
    assert curve and [x for x, _ in points(curve.marks)] == [0, WIDTH]
    assert all(0 <= y <= HEIGHT for _, y in points(curve.marks))
    assert points(curve.line)[0][0] == WIDTH / 4


def test_nothing_finite_is_no_chart():
    assert draw(PLAIN, Steps.of([1, 2]), [math.nan, math.nan]) is None


def test_one_step_is_a_chart():
    curve = draw(PLAIN, Steps.of([1]), [2.0])
    assert curve and points(curve.line) == [(WIDTH / 2, HEIGHT / 2)]


def test_long_runs_are_smoothed():
    curve = draw(Kind("loss", "Loss"), Steps.of(range(100)), [float(i % 2) for i in range(100)])
    assert curve and curve.span == 10 and len(points(curve.smooth)) == 100
    heights = [y for _, y in points(curve.smooth)][20:80]
    assert max(heights) - min(heights) < HEIGHT * 0.2
