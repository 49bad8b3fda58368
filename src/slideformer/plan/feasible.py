"""Whether anything fits: a quick answer, for the questions that a refusal asks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from slideformer.plan.choice import Fits, Group, Limits
from slideformer.plan.edges import last
from slideformer.plan.sizes import Sizes

if TYPE_CHECKING:
    from slideformer.plan.footprint import Work
    from slideformer.plan.plan import Plan, Workload

COUNTS = 9  # numbers of resident blocks that are tried
SAFETY = 1.03  # not everything shrinks with the length


@dataclass(frozen=True)
class Asked:
    """A workload and its budgets in bytes, as `make_plan` has them.

    Attributes:
        device: None where layers compute in host memory.
        disk: None where nothing may be on disk.
    """

    workload: "Workload"
    host: int
    device: int | None
    disk: int | None


Possible = Callable[[Asked], "Plan | None"]  # a plan that fits, or None


def one_that_fits(
    starts: Sequence[Sizes], limits: Limits, fits: Fits, plan_of: Callable[[Sizes], "Plan"]
) -> "Plan | None":
    """The first found, with nothing kept; few numbers of resident blocks are tried, so that a fit may be missed."""
    bare = replace(limits, keeps=False)
    groups = (Group(start, ends, bare, fits) for start in least_demanding(starts) for ends in limits.ends)
    found = (sizes for group in groups for count in _counts(group, bare, fits) for sizes in group.candidates(count))
    sizes = next(found, None)
    return None if sizes is None else plan_of(sizes)


def of_length(work: "Work", length: int, measured: int) -> "Work":
    """What computation needs for shorter sequences than were measured, if it shrinks with them."""

    def shorter(size: int) -> int:
        return min(size, int(SAFETY * size * length / measured) + 1)

    return replace(
        work, block_bytes=shorter(work.block_bytes), inputs_bytes=shorter(work.inputs_bytes),
        kept_bytes=shorter(work.kept_bytes), kept_outputs_bytes=shorter(work.kept_outputs_bytes),
    )  # fmt: skip


def least_demanding(starts: Sequence[Sizes]) -> list[Sizes]:
    """Those with the smallest micro-batches, and with a single one, which needs no sum of gradients; the smallest
    window, and the fewest gradients that wait."""
    smallest, slots = min(s.micro_batch_size for s in starts), min(s.gradient_slots for s in starts)
    depth = min(s.window_depth for s in starts)
    return [
        s for s in starts
        if s.window_depth == depth and s.gradient_slots == slots
        and (s.micro_batch_size == smallest or s.micro_batches == 1)
    ]  # fmt: skip


def _counts(group: Group, limits: Limits, fits: Fits) -> Iterator[int]:
    """From the fewest to the most that the device has room for."""
    low, high = limits.resident
    start = replace(group.start, resident_ends=group.ends, host_boundaries=limits.blocks)
    most = last(range(low, high + 1), lambda count: fits.device(replace(start, resident=count)))
    if most is not None:
        yield from dict.fromkeys(low + (most - low) * k // (COUNTS - 1) for k in range(COUNTS))
