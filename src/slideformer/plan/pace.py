"""What a step takes in seconds, as a function of the sizes: what plans are compared by."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from slideformer.plan.footprint import ModelSizes
from slideformer.plan.operations import ModelOperations, StepTokens, full_step
from slideformer.plan.piece_seconds import NAMES, step_work
from slideformer.plan.rates import MachineRates
from slideformer.plan.sizes import Sizes
from slideformer.plan.step_work import StepWork
from slideformer.plan.timing import settle, slowdown_at

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
        work = self._work(model, sizes, dtype)
        return settle(work, self.rates, least_seconds(work, self.rates, self.clipping), rounds=2)[1].seconds

    def least_seconds(self, model: ModelSizes, sizes: Sizes, dtype: torch.dtype) -> float:
        """What the busiest lane takes: hardly a schedule is shorter, and this is found in a fraction of the time."""
        return least_seconds(self._work(model, sizes, dtype), self.rates, self.clipping)

    def beside_seconds(self, model: ModelSizes, sizes: Sizes, dtype: torch.dtype) -> float:
        """Of all lanes but that of computation, together."""
        busy = self._work(model, sizes, dtype).busy_seconds()
        return sum(busy.values()) - busy["compute"]

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


def least_seconds(work: StepWork, rates: MachineRates, clipping: bool) -> float:
    """The busiest lane's seconds, AdamW slowed down by the copies of a step that is no longer.

    Clipped, no update runs from the end of forward to the end of backward.
    """
    busy = work.busy_seconds()
    alone = max(busy.values())
    idle = sum(work.backward) + work.head if clipping else 0.0
    copies = busy["h2d"] + busy["d2h"]
    return _slowest_of(alone, lambda seconds: idle + busy["adamw"] * slowdown_at(rates, copies / (2 * seconds)))


def _slowest_of(alone: float, with_updates: Callable[[float], float]) -> float:
    """The step that is as long as its updates take: the longer the step, the less do copies hold AdamW up."""
    if not alone or (low := alone) >= (high := with_updates(alone)):
        return alone
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        low, high = (middle, high) if with_updates(middle) > middle else (low, middle)
    return low
