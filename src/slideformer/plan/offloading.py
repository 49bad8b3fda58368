"""How much goes to disk: as little as makes the rest fit in host memory."""

from collections.abc import Callable
from dataclasses import replace
from enum import IntEnum
from typing import TYPE_CHECKING

from slideformer.memory.record_ring import BUFFERS
from slideformer.plan.edges import Made, Ordered
from slideformer.plan.sizes import Sizes

if TYPE_CHECKING:
    from slideformer.plan.plan import Plan

    PlanOf = Callable[[Sizes], Plan]


DISK_BUFFERS = (BUFFERS, 3, 2, 1)
BUFFERS_BESIDE_WEIGHTS = 2  # each takes the memory of six more blocks' weights, and the disk is what a step waits for


class Reach(IntEnum):
    """What may be on disk, from what costs a step the least to what costs it the most; each comes with those before."""

    NOTHING = 0
    STATES = 1  # but for their weights
    BOUNDARIES = 2
    WEIGHTS = 3


def reaches(disk_budget_bytes: int | None) -> list[Reach]:
    """To be tried one after the other: what fits with less is not changed by what more would allow."""
    return [Reach.NOTHING] if disk_budget_bytes is None else [Reach.STATES, Reach.BOUNDARIES, Reach.WEIGHTS]


def ways(sizes: Sizes, blocks: int, reach: Reach) -> Ordered[Sizes]:
    """The sizes with more and more of one kind on disk, and all that comes before it.

    Buffers come with the first of a kind, so that may need more host memory than none; from then on each needs less.
    """
    states = replace(sizes, disk_blocks=blocks)
    match reach:
        case Reach.NOTHING:
            return [sizes]
        case Reach.STATES:
            return Made(lambda count: replace(sizes, disk_blocks=count), range(1, blocks + 1))
        case Reach.BOUNDARIES:
            return Made(lambda count: replace(states, disk_boundaries=count), range(1, sizes.host_boundaries + 1))
        case Reach.WEIGHTS:
            few = min(sizes.disk_buffers, BUFFERS_BESIDE_WEIGHTS)
            both = replace(states, disk_boundaries=sizes.host_boundaries, disk_buffers=few)
            return Made(lambda count: replace(both, disk_weight_blocks=count), range(1, blocks + 1))


def fewest_on_disk(plan: "Plan", plan_of: "PlanOf", reach: Reach) -> "Plan":
    """The plan with the least on disk that fits in host memory; if none does, that with all that may be there."""
    everything = plan
    for kind in range(Reach.STATES, reach + 1):
        tried = ways(plan.sizes, len(plan.model.blocks), Reach(kind))
        if len(tried) and (everything := plan_of(tried[-1])).fits_host:
            return _first_that_fits(tried, plan_of)
    return everything


def _first_that_fits(tried: Ordered[Sizes], plan_of: "PlanOf") -> "Plan":
    """Of sizes each of which needs less host memory than the one before; the last fits."""
    low, high = 0, len(tried) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if plan_of(tried[middle]).fits_host else (middle + 1, high)
    return plan_of(tried[low])


def what_is_on_disk(plan: "Plan") -> str:
    """In words; empty if nothing is."""
    sizes, blocks = plan.sizes, len(plan.model.blocks)
    parts = {
        f"optimizer state of {sizes.disk_blocks} of {blocks} blocks": sizes.disk_blocks,
        f"boundary activations of {sizes.boundaries_on_disk(blocks)}": sizes.boundaries_on_disk(blocks),
        f"weights of {sizes.disk_weight_blocks}": sizes.disk_weight_blocks,
    }
    *others, last = [words for words, count in parts.items() if count] or [""]
    return f"{', '.join(others)} and {last}" if others else last
