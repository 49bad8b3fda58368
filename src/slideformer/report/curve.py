"""A measurement over the steps, as the lines of a chart.

The drawing is stretched to whatever width the page gives it, so texts and ticks are not in it: they stand around it, at
shares of its width and height.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from slideformer.report.axes import Axis, format_number, step_axis, step_texts, tick_texts, value_axis
from slideformer.report.series import Bucket, bucket_size, bucketed, finite, smoothed, smoothing_span

WIDTH, HEIGHT = 1000, 400  # of the drawing, in its own units


@dataclass(frozen=True)
class Label:
    """A tick's text, and where it stands: percent from the left, or from the top."""

    percent: float
    text: str


@dataclass(frozen=True)
class Kind:
    """What a curve shows, and how.

    Attributes:
        key: name of the measurement in the step's record.
        from_zero: whether the axis begins at zero.
        may_be_log: whether a few values that are far larger than most make it logarithmic.
        is_smoothed: whether a smooth curve is drawn over the values.
    """

    key: str
    title: str
    unit: str = ""
    from_zero: bool = False
    may_be_log: bool = False
    is_smoothed: bool = True


@dataclass(frozen=True)
class Curve:
    """A chart, ready to be written.

    Attributes:
        line, band, smooth, marks: path data; empty where there is nothing to draw.
        span: steps that are smoothed over; 0 where none are.
        missing: steps without a finite value.
        points: what a reader who points at a bucket is told: means, lows, highs, smoothed means.
    """

    kind: Kind
    line: str
    band: str
    smooth: str
    marks: str
    x_labels: list[Label]
    y_labels: list[Label]
    is_log: bool
    span: int
    missing: list[int]
    summary: str
    last: str
    points: dict[str, list[float | None]] = field(repr=False)


@dataclass(frozen=True)
class Steps:
    """The horizontal axis that all curves of a run share.

    Attributes:
        numbers: the step of each record, ascending.
        size: records that are one point.
    """

    numbers: Sequence[int]
    axis: Axis
    size: int

    @classmethod
    def of(cls, numbers: Sequence[int], others: Sequence[int] = ()) -> "Steps":
        """The axis of these steps, and of `others`, such as 0, the one before training."""
        every = [*numbers, *others]
        return cls(numbers, step_axis(min(every), max(every)), bucket_size(len(numbers)))

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First and last step of each point."""
        starts = range(0, len(self.numbers), self.size)
        return [(self.numbers[a], self.numbers[min(a + self.size, len(self.numbers)) - 1]) for a in starts]

    @property
    def x(self) -> list[float]:
        return [WIDTH * self.axis.share((first + last) / 2) for first, last in self.spans]


def draw(kind: Kind, steps: Steps, values: Sequence[float], marks: Sequence[tuple[int, float]] = ()) -> Curve | None:
    """The chart of one measurement, or None where no step has a finite value.

    Args:
        values: one for each of `steps.numbers`; NaN is a gap.
        marks: (step, value) of measurements on the same axis that are not taken in every step.
    """
    there = finite(values)
    if not there:
        return None
    axis = value_axis([*there, *(value for _, value in marks)], kind.from_zero, kind.may_be_log)
    buckets, span = bucketed(values, steps.size), smoothing_span(len(there)) if kind.is_smoothed else 0
    means = [bucket.mean for bucket in bucketed(smoothed(values, span), steps.size)] if span else []
    y_of = _heights(axis)
    return Curve(
        kind,
        line=_line(steps.x, [y_of(bucket.mean) for bucket in buckets]),
        band=_band(steps.x, buckets, axis) if steps.size > 1 else "",
        smooth=_line(steps.x, [y_of(mean) for mean in means]),
        marks="".join(f"M{_n(WIDTH * steps.axis.share(step))} {_n(y_of(value))}h0" for step, value in marks),
        x_labels=step_labels(steps.axis),
        y_labels=value_labels(axis),
        is_log=axis.is_log,
        span=span,
        missing=[step for step, value in zip(steps.numbers, values, strict=True) if math.isnan(value)],
        summary=_summary(there),
        last=format_number(there[-1]),
        points=_points(buckets, means, steps.size),
    )


def value_labels(axis: Axis) -> list[Label]:
    """The ticks of a vertical axis."""
    texts = zip(axis.ticks, tick_texts(axis), strict=True)
    return [Label(100 - 100 * axis.share(tick), text) for tick, text in texts]


def step_labels(axis: Axis) -> list[Label]:
    """The ticks of a horizontal axis."""
    return [Label(100 * axis.share(tick), text) for tick, text in zip(axis.ticks, step_texts(axis), strict=True)]


def _heights(axis: Axis) -> Callable[[float], float]:
    return lambda value: math.nan if math.isnan(value) else HEIGHT * (1 - axis.share(value))


def _line(xs: Sequence[float], ys: Sequence[float]) -> str:
    """Through every point, broken at NaN; a point between two gaps becomes a dot."""
    path = []
    for run in _runs(xs, ys):
        path.append("M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in run) + ("h0" if len(run) == 1 else ""))
    return "".join(path)


def _band(xs: Sequence[float], buckets: Sequence[Bucket], axis: Axis) -> str:
    """The area between the smallest and the largest value of each bucket."""
    y_of = _heights(axis)
    tops = list(_runs(xs, [y_of(bucket.high) for bucket in buckets]))
    bottoms = list(_runs(xs, [y_of(bucket.low) for bucket in buckets]))
    path = []
    for top, bottom in zip(tops, bottoms, strict=True):
        path.append("M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in [*top, *reversed(bottom)]) + "Z")
    return "".join(path)


def _runs(xs: Sequence[float], ys: Sequence[float]) -> list[list[tuple[float, float]]]:
    """The points without the gaps: a list for each stretch in between."""
    groups = groupby(zip(xs, ys, strict=False), key=lambda point: math.isnan(point[1]))
    return [list(points) for is_gap, points in groups if not is_gap]


def _points(buckets: Sequence[Bucket], means: Sequence[float], size: int) -> dict[str, list[float | None]]:
    points = {"mean": [_rounded(bucket.mean) for bucket in buckets]}
    if size > 1:
        points["low"] = [_rounded(bucket.low) for bucket in buckets]
        points["high"] = [_rounded(bucket.high) for bucket in buckets]
    if means:
        points["smooth"] = [_rounded(mean) for mean in means]
    return points


def _rounded(value: float) -> float | None:
    """To the digits that are shown; JSON has no NaN."""
    return None if math.isnan(value) else float(f"{value:.5g}")


def _summary(there: Sequence[float]) -> str:
    first, last = format_number(there[0]), format_number(there[-1])
    return f"from {first} to {last}; smallest {format_number(min(there))}, largest {format_number(max(there))}"


def _n(coordinate: float) -> str:
    return f"{coordinate:.1f}".removesuffix(".0")
