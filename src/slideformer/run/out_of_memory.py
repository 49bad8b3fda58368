"""Out of device memory in the middle of a run: what was planned, and the nearest setting that needs less."""

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from slideformer.errors import DoesNotFit
from slideformer.plan.machine import resident_bytes
from slideformer.plan.plan import Plan
from slideformer.plan.table import render
from slideformer.prepare.job import Job, plan_within
from slideformer.units import MIB, format_bytes

SHARES = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)  # of what was planned, tried in turn


@contextmanager
def explained_out_of_memory(job: Job) -> Iterator[None]:
    """Turn an allocator's error into one that says what to do, and let go of all that it held.

    Raises:
        DoesNotFit: in the place of torch.OutOfMemoryError. The frames of the failed step are cleared and the
            allocator's cache is emptied, so the process may try again.
    """
    try:
        yield
        return
    except torch.OutOfMemoryError as error:
        reason = str(error).split("\n", 1)[0]
        traceback.clear_frames(error.__traceback__)
    release_memory()
    planned = format_bytes(_planned_bytes(job.plan))
    message = f"the device ran out of memory, although {planned} were planned: {reason}\n{render(job.plan)}"
    raise DoesNotFit(message, _remedy(job)) from None


def release_memory() -> None:
    """Give memory that nothing holds any more back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _remedy(job: Job) -> str:
    """The nearest plan that needs less, as settings; another program may hold what this one was promised."""
    found = next(filter(None, (_smaller(job, share) for share in SHARES)), None)
    if found is None:
        return "nothing smaller fits this model: free the device of other programs, or lower max_length"
    budget_bytes, plan = found
    settings = [f"budget.{'host' if _on_host(job.plan) else 'gpu'}: {-(-budget_bytes // MIB)}MiB"]
    for name in ("micro_batch_size", "window_depth"):
        if (size := getattr(plan.sizes, name)) != getattr(job.plan.sizes, name):
            settings.append(f"{name}: {size}")
    return f"free the device of other programs, or set {', '.join(settings)}"


def _smaller(job: Job, share: float) -> tuple[int, Plan] | None:
    """A budget, and the plan within it; of host memory, what the process held before the engine is not to be saved."""
    process_then, process_now = (job.plan.host["process"], resident_bytes()) if _on_host(job.plan) else (0, 0)
    budget_bytes = process_now + int((_planned_bytes(job.plan) - process_then) * share)
    try:
        return budget_bytes, plan_within(job, budget_bytes)
    except DoesNotFit:
        return None


def _planned_bytes(plan: Plan) -> int:
    return plan.host_peak_bytes if _on_host(plan) else plan.device_peak_bytes


def _on_host(plan: Plan) -> bool:
    """Where layers compute in host memory, that is what runs out."""
    return plan.device_budget_bytes is None
