"""What a run took, beside what its plan said: told when it ends."""

from statistics import median

import torch

from slideformer.listeners.events import Listener
from slideformer.listeners.metrics import StepStats, host_peak_bytes
from slideformer.plan.plan import Plan
from slideformer.units import format_bytes

MOST_STEPS = 4096  # whose seconds are kept, so that a long run takes no more memory than a short one


class StepTimes(Listener):
    """Collects the seconds of a run's steps, of a long run's every second, fourth, ... of them; its first is not like
    the others and is left out."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._steps, self._stride = 0, 1

    def stepped(self, stats: StepStats) -> None:
        if self._steps and self._steps % self._stride == 0:
            self._seconds.append(stats.seconds)
        self._steps += 1
        if len(self._seconds) == MOST_STEPS:
            self._seconds, self._stride = self._seconds[1::2], 2 * self._stride

    @property
    def median(self) -> float | None:
        """None after less than two steps."""
        return median(self._seconds) if self._seconds else None


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
