"""What is said where nothing fits: what is needed, the largest parts of it, and what would change that."""

from dataclasses import replace
from typing import TYPE_CHECKING

from slideformer.errors import DoesNotFit
from slideformer.plan.offloading import DISK_BUFFERS, Reach, disk_is_full, fewest_on_disk, offer
from slideformer.units import format_bytes, gib_that_hold

if TYPE_CHECKING:
    from slideformer.plan.offloading import PlanOf
    from slideformer.plan.plan import Plan, Workload


def least_demanding(plans: "list[Plan]") -> "Plan":
    """Of the plans that the device can hold, that with the least host memory; if there is none, the smallest there."""
    on_device = [plan for plan in plans if plan.fits_device]
    if on_device:
        return min(on_device, key=lambda plan: plan.host_peak_bytes)
    return min(plans, key=lambda plan: (plan.device_peak_bytes, plan.host_peak_bytes))


def does_not_fit(plan: "Plan", workload: "Workload", plan_of: "PlanOf") -> DoesNotFit:
    """The refusal, from the least demanding plan without a disk."""
    budget = plan.device_budget_bytes
    if budget is not None and not plan.fits_device:
        pinned = [key for key in ("micro_batch_size", "window_depth", "resident", "kept") if getattr(workload, key)]
        remedy = f"leave {' and '.join(pinned)} to the planner" if pinned else "lower max_length"
        return DoesNotFit(
            f"the GPU needs {format_bytes(plan.device_peak_bytes)}, and its budget is {format_bytes(budget)}; "
            f"largest: {_largest(max(plan.device.values(), key=lambda phase: sum(phase.values())))}",
            f"{remedy}, or give budget.gpu at least {gib_that_hold(plan.device_peak_bytes)}",
        )
    other = offer(plan, plan_of)
    if plan.disk_budget_bytes is not None:
        one_buffer = plan_of(replace(plan.sizes, disk_buffers=DISK_BUFFERS[-1]))
        with_disk = fewest_on_disk(one_buffer, plan_of, Reach.WEIGHTS)
        if with_disk.fits_host:
            return disk_is_full(with_disk)
        plan = min(plan, with_disk, key=lambda plan: plan.host_peak_bytes)
    savings = {
        "max_grad_norm: null": plan.host.get("gradients", 0) if workload.clipping else 0,
        "optimizer_state: bf16": 4 * plan.model.trained_parameters if workload.optimizer_state == "fp32" else 0,
    }
    smaller = _parameters_that_fit(plan) / 1e9
    model = f", or train a model of at most {smaller:.2f}B parameters (this one has {plan.model.parameters / 1e9:.2f}B)"
    less = " and ".join(f"{setting} saves up to {format_bytes(size)}" for setting, size in savings.items() if size)
    without = f" ({less})" if less else ""
    return DoesNotFit(
        f"host memory needs {format_bytes(plan.host_peak_bytes)}, and its budget is "
        f"{format_bytes(plan.host_budget_bytes)}; largest: {_largest(plan.host)}",
        f"give budget.host at least {gib_that_hold(plan.host_peak_bytes)}{without}{other}"
        f"{model if smaller >= 0.01 else ''}",
    )


def _parameters_that_fit(plan: "Plan") -> float:
    state = plan.host["weights and optimizer state"]
    rest = plan.host_peak_bytes - state
    return max(0.0, plan.model.parameters * (plan.host_budget_bytes - rest) / state)


def _largest(parts: dict[str, int]) -> str:
    top = sorted(parts.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{name} {format_bytes(size)}" for name, size in top)
