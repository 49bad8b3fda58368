"""How much goes to disk: as little as makes the rest fit in host memory, and what is said where that is not enough."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from slideformer.errors import DoesNotFit
from slideformer.plan.sizes import Sizes
from slideformer.units import format_bytes, gib_that_hold

if TYPE_CHECKING:
    from slideformer.plan.plan import Plan

    PlanOf = Callable[[Sizes], Plan]


def fewest_on_disk(plan: "Plan", plan_of: "PlanOf") -> "Plan":
    """The plan with the fewest blocks on disk that fits in host memory; if none does, with all of them there.

    Buffers come with the first block on disk, so a few blocks may need more host memory than none.
    """
    blocks = len(plan.model.blocks)
    everything = plan_of(replace(plan.sizes, disk_blocks=blocks))
    if not everything.fits_host:
        return everything
    counts = (plan_of(replace(plan.sizes, disk_blocks=count)) for count in range(1, blocks + 1))
    return next((found for found in counts if found.fits_host), everything)


def disk_is_full(plan: "Plan") -> DoesNotFit:
    """Host memory would do with what the disk cannot hold."""
    assert plan.disk_budget_bytes is not None
    return DoesNotFit(
        f"host memory does with {plan.sizes.disk_blocks} of {len(plan.model.blocks)} blocks on disk, which needs "
        f"{format_bytes(plan.disk_peak_bytes)}, and the disk's budget is {format_bytes(plan.disk_budget_bytes)}",
        f"give budget.disk at least {gib_that_hold(plan.disk_peak_bytes)}, or an offload_dir with more room",
    )


def offer(plan: "Plan", plan_of: "PlanOf") -> str:
    """What a disk would change, for the hint of a plan that has none and does not fit in host memory."""
    with_disk = fewest_on_disk(plan, plan_of)
    if plan.disk_budget_bytes is not None or not with_disk.fits_host:
        return ""
    return f", set budget.offload_dir to a fast local disk with {gib_that_hold(with_disk.disk_peak_bytes)} free"
