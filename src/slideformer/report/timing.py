"""How long steps took, and what of it was spent on what."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, quantiles

from slideformer.report.axes import format_number
from slideformer.report.run_data import RunData
from slideformer.report.series import finite
from slideformer.units import format_seconds

SECONDS = "_seconds"


@dataclass(frozen=True)
class Share:
    """A part of the step: mean seconds a step, and percent of the mean step."""

    name: str
    seconds: float
    percent: float


@dataclass(frozen=True)
class Timing:
    """Where the time of a run went.

    Attributes:
        facts: (name, value) pairs about whole steps.
        shares: every measurement of a step whose name ends in _seconds; they may overlap in time.
    """

    facts: list[tuple[str, str]]
    shares: list[Share]


def timing(run: RunData) -> Timing | None:
    """None where no step says how long it took."""
    seconds = run.column("seconds")
    if not (there := finite(seconds)):
        return None
    names = dict.fromkeys(name for step in run.steps for name in step.model_extra or {} if name.endswith(SECONDS))
    shares = [share for name in names if (share := _share(name, run.column(name), fmean(there)))]
    return Timing(_facts(run, seconds, there), sorted(shares, key=lambda share: -share.seconds))


def _share(name: str, seconds: Sequence[float], step_seconds: float) -> Share | None:
    there = finite(seconds)
    if not there or step_seconds <= 0:
        return None
    mean = fmean(there)
    return Share(name.removesuffix(SECONDS).replace("_", " "), mean, 100 * mean / step_seconds)


def _facts(run: RunData, seconds: Sequence[float], there: Sequence[float]) -> list[tuple[str, str]]:
    slowest = max(range(len(seconds)), key=lambda i: -math.inf if math.isnan(seconds[i]) else seconds[i])
    facts = [("all steps", format_seconds(sum(there)))]
    if len(there) >= 10:
        tenths = quantiles(there, n=10, method="inclusive")
        facts.append(("a step, median", f"{format_number(tenths[4])} s"))
        facts.append(("8 of 10 steps", f"{format_number(tenths[0])} to {format_number(tenths[8])} s"))
    facts.append((f"slowest, step {run.steps[slowest].step:,}", f"{format_number(seconds[slowest])} s"))
    if spent := [e.seconds for e in run.evaluations if e.seconds is not None and math.isfinite(e.seconds)]:
        facts.append((f"{len(spent):,} evaluations", format_seconds(sum(spent))))
    return facts
