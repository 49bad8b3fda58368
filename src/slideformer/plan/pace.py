"""What a step takes in seconds, as a function of the sizes: what plans are compared by."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from slideformer.plan.footprint import ModelSizes
from slideformer.plan.operations import ModelOperations, StepTokens, full_step
from slideformer.plan.rates import MachineRates
from slideformer.plan.schedule import StepWork
from slideformer.plan.sizes import Sizes
from slideformer.plan.timing import NAMES, settle, slowdown_at, step_work

ROUNDS = 8  # of bisection


@dataclass(frozen=True)
class Pace:
    """One model's average step on one machine.

    Attributes:
        tokens_of: micro-batch size -> what a step computes, padding included.
        clipping: whether gradients wait for their norm.
    """

    operations: ModelOperations
    tokens_of: Callable[[int], StepTokens]
    rates: MachineRates
    clipping: bool

    def seconds(self, model: ModelSizes, sizes: Sizes, dtype: torch.dtype) -> float:
        """Of a step, as the schedule says."""
        return settle(self._work(model, sizes, dtype), self.rates)[1].seconds

    def least_seconds(self, model: ModelSizes, sizes: Sizes, dtype: torch.dtype) -> float:
        """What the busiest lane takes: no schedule is shorter, and this is found in a fraction of the time."""
        return least_seconds(self._work(model, sizes, dtype), self.rates)

    def _work(self, model: ModelSizes, sizes: Sizes, dtype: torch.dtype) -> StepWork:
        tokens = self.tokens_of(sizes.micro_batch_size)
        return step_work(model, self.operations, sizes, tokens, self.rates, dtype, self.clipping)


def pace_of_full_steps(
    operations: ModelOperations | None,
    rates: MachineRates | None,
    sequences: int,
    length: int,
    dtype: torch.dtype,
    clipping: bool,
) -> Pace | None:
    """The pace of steps of which all sequences are of one length; None where the machine or the model is not known."""
    if operations is None or rates is None or NAMES[dtype] not in rates.compute.matmul_flops:
        return None
    return Pace(operations, lambda micro_batch_size: full_step(sequences, length), rates, clipping)


def least_seconds(work: StepWork, rates: MachineRates) -> float:
    """The busiest lane's seconds, AdamW slowed down by the copies of a step that is no longer."""
    r, n, depth = work.resident, len(work.forward), work.depth
    compute = sum(work.forward) + sum(work.backward) + work.head
    again = sum(work.fetch[r : max(r, n - depth)])  # in backward; the last ones are still there
    h2d = sum(work.fetch[r:]) + again + work.fetch_head + work.fetch_inputs + sum(work.load)
    d2h = sum(work.send[r:]) + work.send_head + sum(work.save)
    adamw = sum(work.update[r:]) + work.update_head + work.update_table + work.update_rows
    disk = sum(work.read) + sum(work.write)
    alone = max(compute, h2d, d2h, adamw, disk)
    return _slowest_of(alone, lambda seconds: adamw * slowdown_at(rates, (h2d + d2h) / (2 * seconds)))


def _slowest_of(alone: float, adamw_beside: Callable[[float], float]) -> float:
    """The step that is as long as AdamW takes in it: the longer the step, the less do copies hold AdamW up."""
    if not alone or (low := alone) >= (high := adamw_beside(alone)):
        return alone
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        low, high = (middle, high) if adamw_beside(middle) > middle else (low, middle)
    return low
