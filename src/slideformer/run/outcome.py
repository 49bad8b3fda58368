"""What a run took, beside what its plan said: told when it ends."""

from statistics import median

import torch

from slideformer.listeners.events import Listener
from slideformer.listeners.metrics import StepStats, host_peak_bytes
from slideformer.plan.plan import Plan
from slideformer.units import format_bytes


class StepTimes(Listener):
    """Collects the seconds of a run's steps; its first is not like the others and is left out."""

    def __init__(self) -> None:
        self._seconds: list[float] = []

    def stepped(self, stats: StepStats) -> None:
        self._seconds.append(stats.seconds)

    @property
    def median(self) -> float | None:
        """None after less than two steps."""
        return median(self._seconds[1:]) if len(self._seconds) > 1 else None


def predicted_against_measured(plan: Plan, step_seconds: float | None) -> str:
    """Bytes of each tier, and seconds of a step where both are known.

    Args:
        step_seconds: the median that was measured.
    """
    parts = [f"host: predicted {format_bytes(plan.host_peak_bytes)}, measured {format_bytes(host_peak_bytes())}"]
    if plan.device_budget_bytes is not None:
        peak = torch.cuda.max_memory_allocated()
        parts.append(f"GPU: predicted {format_bytes(plan.device_peak_bytes)}, measured {format_bytes(peak)}")
    if plan.timing is not None and step_seconds is not None:
        parts.append(f"step: predicted {plan.timing.seconds:.3g} s, measured {step_seconds:.3g} s (median)")
    return "; ".join(parts)
