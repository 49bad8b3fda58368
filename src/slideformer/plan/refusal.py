"""What is said where nothing fits: what is needed, the largest parts of it, and the closest configurations that do."""

from slideformer.errors import DoesNotFit
from slideformer.plan.feasible import Asked, Possible
from slideformer.plan.offloading import what_is_on_disk
from slideformer.plan.remedies import Remedy, remedies, shortage
from slideformer.units import format_bytes


def does_not_fit(asked: Asked, possible: Possible) -> DoesNotFit:
    """The refusal, with what was found to fit."""
    return DoesNotFit(_reason(asked, possible), _hint(remedies(asked, possible)))


def _reason(asked: Asked, possible: Possible) -> str:
    """The tier that is short, the least that would do, and what takes the most of it."""
    tier, plan = shortage(asked, possible)
    if tier == "device":
        assert asked.device is not None
        phase = max(plan.device.values(), key=lambda phase: sum(phase.values()))
        return _needs("the GPU needs", plan.device_peak_bytes, asked.device, phase)
    if tier == "disk":
        assert asked.disk is not None
        return (
            f"host memory does with {what_is_on_disk(plan)} on disk, which needs "
            f"{format_bytes(plan.disk_peak_bytes)}, and the disk's budget is {format_bytes(asked.disk)}"
        )
    return _needs("host memory needs", plan.host_peak_bytes, asked.host, plan.host)


def _needs(what: str, needed_bytes: int, budget_bytes: int, parts: dict[str, int]) -> str:
    largest = ", ".join(f"{name} {format_bytes(size)}" for name, size in sorted(parts.items(), key=lambda i: -i[1])[:3])
    return f"{what} {format_bytes(needed_bytes)}, and its budget is {format_bytes(budget_bytes)}; largest: {largest}"


def _hint(found: list[Remedy]) -> str:
    lines = [remedy.words for remedy in found]
    return lines[0] if len(lines) == 1 else "any one of these fits:" + "".join(f"\n  {line}" for line in lines)
