"""How much goes to disk: as little as makes the rest fit in host memory."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from slideformer.plan.sizes import Sizes

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
