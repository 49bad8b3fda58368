"""Scales with round ticks, and numbers as people read them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

LOG_FROM = 8.0  # a largest value of so many medians would press everything else to the floor
SHOWN_DIGITS = 4
SMALLEST = 1e-300  # what is below it is zero: doubles lose their precision there


@dataclass(frozen=True)
class Axis:
    """A range of values, linear or logarithmic, and the ticks in it."""

    low: float
    high: float
    ticks: list[float]
    is_log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high end."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def value_axis(values: Sequence[float], from_zero: bool = False, may_be_log: bool = False) -> Axis:
    """The vertical axis of a curve.

    Args:
        values: finite ones; at least one.
        from_zero: whether lengths are compared, so that the axis has to begin at zero.
        may_be_log: whether a few values that are far larger than most make the axis logarithmic.
    """
    low, high = min(values), max(values)
    if may_be_log and low > SMALLEST and high > LOG_FROM * median(values):
        return _log_axis(low, high)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= max(abs(high) * 1e-12, SMALLEST):  # one value only, or rounding
        low, high = (0.0, 1.0) if abs(high) <= SMALLEST else (low - abs(low) / 2, high + abs(high) / 2)
    step = _round_step((high - low) / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Axis(first * step, last * step, [k * step for k in range(first, last + 1)])


def step_axis(first: int, last: int) -> Axis:
    """The horizontal axis: from the first step to the last, with ticks at whole steps."""
    if first == last:
        return Axis(first - 0.5, last + 0.5, [first])
    step = max(1, round(_round_step((last - first) / 6)))
    inner = range(-(-first // step) * step, last + 1, step)
    return Axis(first, last, [float(tick) for tick in inner])


def tick_texts(axis: Axis) -> list[str]:
    """The ticks of an axis with the same number of decimals, unless they are very small or large."""
    texts = [format_number(tick) for tick in axis.ticks]
    if axis.is_log or any("e" in text for text in texts):
        return texts
    decimals = max(len(text.partition(".")[2]) for text in texts)
    return [f"{tick:,.{decimals}f}" for tick in axis.ticks]


def format_number(value: float) -> str:
    """1234567 -> '1,234,567', 0.00123456 -> '0.001235', 0.00001 -> '1e-5'; what is not finite is a dash."""
    if not math.isfinite(value):
        return "\N{EN DASH}"
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e9):
        mantissa, _, exponent = f"{value:.{SHOWN_DIGITS - 1}e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{SHOWN_DIGITS}g}"


def step_texts(axis: Axis) -> list[str]:
    """The ticks of a step axis: '200', or '20k' where all of them are whole thousands."""
    if axis.high >= 10_000 and all(tick % 1000 == 0 for tick in axis.ticks):
        return [f"{tick / 1000:,.0f}k" if tick else "0" for tick in axis.ticks]
    return [f"{tick:,.0f}" for tick in axis.ticks]


def _log_axis(low: float, high: float) -> Axis:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, (last - first) // 4)
    factors = (1, 2, 5) if last - first <= 2 else (1,)
    rounds = [factor * 10.0**k for k in range(first, last + 1, every) for factor in factors]
    low, high = max((r for r in rounds if r <= low), default=low), min((r for r in rounds if r >= high), default=high)
    return Axis(low, high, [r for r in rounds if low <= r <= high], is_log=True)


def _round_step(least: float) -> float:
    """The smallest 1, 2 or 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
