"""Whether a long run's use of the machine stayed flat: memory and mappings within 2%, counts exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression, median

WARM_UP = 0.1  # of the samples: allocators, caches and lazily loaded code fill up
WITHIN = 0.02


@dataclass(frozen=True)
class Verdict:
    """One quantity over a run, after the warm-up.

    Attributes:
        first, last: of the first and the last tenth the median, or the least of what is counted.
        growth: from `first` to `last`, as a share.
        fitted_growth: what a straight line through all samples grows, as a share of `first`.
        flat: whether that is within what is allowed.
    """

    quantity: str
    first: float
    last: float
    growth: float
    fitted_growth: float
    flat: bool

    def __str__(self) -> str:
        numbers = f"{self.first:16,.0f} -> {self.last:16,.0f}  {self.growth:+8.3%}  fitted {self.fitted_growth:+8.3%}"
        return f"{self.quantity:20} {numbers}  {'flat' if self.flat else 'NOT FLAT'}"


def judge(quantity: str, seconds: Sequence[float], values: Sequence[float], counted: bool) -> Verdict:
    """Compare the ends of a series and fit a line through it.

    Args:
        seconds: when each value was taken.
        counted: it is a number of things (files, threads) that come and go with each checkpoint, so that the fewest of
            a tenth are those that stay, and their number must not change; else it may drift by 2%.

    Raises:
        ValueError: fewer than 20 samples are left after the warm-up.
    """
    skipped = int(len(values) * WARM_UP)
    seconds, values = seconds[skipped:], values[skipped:]
    if len(values) < 20:
        raise ValueError(f"{len(values)} samples after the warm-up, 20 are needed: run for longer")
    tenth = len(values) // 10
    typical = min if counted else median
    first, last = typical(values[:tenth]), typical(values[-tenth:])
    fitted = linear_regression(seconds, values).slope * (seconds[-1] - seconds[0])
    share = 1 / max(first, 1)
    growth, fitted_growth = (last - first) * share, fitted * share
    flat = first == last if counted else max(abs(growth), abs(fitted_growth)) <= WITHIN
    return Verdict(quantity, first, last, growth, fitted_growth, flat)
