"""Each tier of memory: what was planned, what was measured, what was allowed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slideformer.report.run_data import PlannedBytes, RunData

SUMS = ("total", "peak", "budget")  # entries of a plan that are not parts
COLOURS = 8  # of parts; further ones share the last


@dataclass(frozen=True)
class Segment:
    """A part of the plan's peak in the bar: where it starts and how long it is, in percent of the bar's axis."""

    name: str
    size_bytes: int
    start: float
    length: float
    colour: int


@dataclass(frozen=True)
class Tier:
    """One tier's memory.

    Attributes:
        phases: columns of the table; the host has one, without a name.
        parts: (name, bytes in each phase), the largest first.
        peak_phase: index of the phase that needs the most.
        planned_bytes, measured_bytes, budget_bytes: None where it is not known, or not limited.
        segments: the parts of the phase that needs the most.
    """

    name: str
    phases: list[str]
    parts: list[tuple[str, list[int]]]
    peak_phase: int
    planned_bytes: int | None
    measured_bytes: int | None
    budget_bytes: int | None
    segments: list[Segment]

    @property
    def axis_bytes(self) -> int:
        return max(filter(None, (self.planned_bytes, self.measured_bytes, self.budget_bytes)), default=1)

    def percent(self, size_bytes: int) -> float:
        return 100 * size_bytes / self.axis_bytes

    @property
    def deviation(self) -> str:
        """How far the measured peak is from the planned one."""
        if not self.planned_bytes or not self.measured_bytes:
            return ""
        percent = 100 * (self.measured_bytes / self.planned_bytes - 1)
        return f"{abs(percent):.1f}% {'above' if percent > 0 else 'below'} the plan"


def tiers(run: RunData) -> list[Tier]:
    """The GPU, where it was used, and the host, where anything is known of them; the disk, where anything is there."""
    plan = run.record.plan if run.record else PlannedBytes()
    found = []
    gpu_peak = _peak(run.column("gpu_peak_bytes"))
    if gpu_peak or plan.device_bytes.get("budget") is not None:  # without a budget the host's bytes include these
        phases = {name: parts for name, parts in plan.device_bytes.items() if isinstance(parts, dict)}
        budget = plan.device_bytes.get("budget")
        found.append(_tier("GPU", phases, gpu_peak, budget if isinstance(budget, int) else None))
    host_peak = _peak(run.column("host_peak_bytes"))
    if host_peak or plan.host_bytes:
        found.append(_tier("Host", _one_phase(plan.host_bytes), host_peak, plan.host_bytes.get("budget")))
    if plan.disk_bytes.get("total"):  # allocated as planned, before the first step
        found.append(_tier("Disk", _one_phase(plan.disk_bytes), None, plan.disk_bytes.get("budget")))
    return [tier for tier in found if tier.planned_bytes or tier.measured_bytes or tier.budget_bytes]


def _one_phase(planned: Mapping[str, int | None]) -> dict[str, dict[str, int]]:
    parts = {name: size for name, size in planned.items() if size is not None and name not in SUMS}
    return {"": parts} if parts else {}


def _tier(name: str, phases: Mapping[str, Mapping[str, int]], measured: int | None, budget: int | None) -> Tier:
    if not phases:
        return Tier(name, [], [], 0, None, measured, budget, [])
    totals = [sum(parts.values()) for parts in phases.values()]
    peak_phase = totals.index(max(totals))
    names = list(dict.fromkeys(part for parts in phases.values() for part in parts))
    rows = [(part, [parts.get(part, 0) for parts in phases.values()]) for part in names]
    rows = sorted((row for row in rows if any(row[1])), key=lambda row: -row[1][peak_phase])
    axis = max(totals[peak_phase], measured or 0, budget or 0) or 1
    segments = _segments([(part, sizes[peak_phase]) for part, sizes in rows], axis)
    return Tier(name, list(phases), rows, peak_phase, totals[peak_phase], measured, budget, segments)


def _segments(parts: Sequence[tuple[str, int]], axis_bytes: int) -> list[Segment]:
    segments, start = [], 0
    for number, (name, size) in enumerate(parts):
        colour = min(number, COLOURS - 1)
        segments.append(Segment(name, size, 100 * start / axis_bytes, 100 * size / axis_bytes, colour))
        start += size
    return segments


def _peak(values: Sequence[float]) -> int | None:
    """The largest, or None where nothing was measured; 0 is what a run without that tier writes."""
    there = [value for value in values if not math.isnan(value) and value > 0]
    return int(max(there)) if there else None
