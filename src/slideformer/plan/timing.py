"""Seconds of a step, from those of its pieces and the schedule."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from slideformer.plan.footprint import ModelSizes
from slideformer.plan.operations import ModelOperations, StepTokens
from slideformer.plan.piece_seconds import step_work
from slideformer.plan.rates import MachineRates
from slideformer.plan.schedule import Schedule, play, play_in_turn
from slideformer.plan.sizes import Sizes
from slideformer.plan.step_work import StepWork, scaled

ROUNDS = 4  # until AdamW's rate and the copies' share of the step agree


@dataclass(frozen=True)
class StepTiming:
    """A step of a run, predicted.

    Attributes:
        seconds: of a step.
        lanes: busy seconds of "compute", "h2d", "d2h", "adamw", where the host is not the device of "calls", and of
            "disk" if something is there; they overlap.
        bound: the lane that shortens the step the most if it is twice as fast.
        tokens: of a step, without padding.
        steps: of the run.
        break_even_tokens: of a step, padding included, from which on computation takes longer than AdamW.
        faster: seconds of a step if one lane were twice as fast, by lane.
        seconds_unclipped: of a step of these sizes without clipping; None: nothing is clipped.
        tokens_per_second_if_doubled: with twice the sequences a step.
        machine: whose rates these are.
        schedule: what runs when.
    """

    seconds: float
    lanes: dict[str, float]
    bound: str
    tokens: float
    steps: int
    break_even_tokens: float
    faster: dict[str, float]
    tokens_per_second_if_doubled: float
    seconds_unclipped: float | None
    machine: str
    schedule: Schedule

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def run_seconds(self) -> float:
        return self.seconds * self.steps

    def as_json(self) -> dict[str, Any]:
        """Everything but the single pieces of work, as plain values."""
        fields = asdict(replace(self, schedule=Schedule(0.0, [])))
        del fields["schedule"]
        return {**fields, "tokens_per_second": self.tokens_per_second, "run_seconds": self.run_seconds}


def predict(
    model: ModelSizes,
    operations: ModelOperations,
    sizes: Sizes,
    tokens: StepTokens,
    rates: MachineRates,
    dtype: torch.dtype,
    clipping: bool,
    steps: int,
) -> StepTiming:
    """The timing of an average step.

    Where the CPU computes, all lanes share its cores: a step is then the sum of them. With a GPU they overlap as the
    schedule says, and AdamW's rate lies between that alone and that under copies, by how busy the copies are.
    """
    alone = step_work(model, operations, sizes, tokens, rates, dtype, clipping)
    work, schedule = settle(alone, rates)
    play_on = play if rates.has_gpu else play_in_turn
    faster = {lane: play_on(scaled(work, {lane: 0.5})).seconds for lane in schedule.lanes}
    doubled = play_on(twice_the_tokens(work)).seconds
    return StepTiming(
        seconds=schedule.seconds,
        lanes=schedule.lanes,
        bound=min(faster, key=lambda lane: faster[lane]),
        tokens=tokens.tokens,
        steps=steps,
        break_even_tokens=tokens.computed * schedule.lanes["adamw"] / schedule.lanes["compute"],
        faster=faster,
        seconds_unclipped=settle(replace(alone, clipping=False), rates)[1].seconds if clipping else None,
        tokens_per_second_if_doubled=2 * tokens.tokens / doubled,
        machine=rates.name,
        schedule=schedule,
    )


def settle(
    work: StepWork, rates: MachineRates, guess: float | None = None, rounds: int = ROUNDS
) -> tuple[StepWork, Schedule]:
    """The work with AdamW as fast as it is beside such copies, and its schedule.

    Args:
        guess: seconds of the step, to begin with; None: those with AdamW as fast as it is alone.
    """
    if not rates.has_gpu:
        return work, play_in_turn(work)
    busy = work.busy_seconds()
    copies, schedule = busy["h2d"] + busy["d2h"], None
    seconds = guess or play(work).seconds
    for _ in range(rounds):
        settled = scaled(work, {"adamw": slowdown_at(rates, copies / (2 * seconds) if seconds else 0.0)})
        schedule = play(settled)
        seconds = schedule.seconds
    assert schedule is not None
    return settled, schedule


def slowdown_at(rates: MachineRates, share: float) -> float:
    """How much longer AdamW takes than alone, where both directions of the link are busy for that share of the step, on
    average: copies share the host's memory with it."""
    under, alone = rates.host.adamw_parameters_under_copies, rates.host.adamw_parameters
    if under is None:
        return 1.0
    return alone / (alone + (under - alone) * min(1.0, share))


def twice_the_tokens(work: StepWork) -> StepWork:
    """The work of a step with twice the micro-batches: weights, gradients and updates stay what they are."""

    def twice(values: list[float]) -> list[float]:
        return [2 * value for value in values]

    return replace(
        work, forward=twice(work.forward), backward=twice(work.backward), head=2 * work.head,
        call_forward=twice(work.call_forward), call_backward=twice(work.call_backward), save=twice(work.save),
        load=twice(work.load), save_outputs=twice(work.save_outputs), load_outputs=twice(work.load_outputs),
        write_boundary=twice(work.write_boundary), read_boundary=twice(work.read_boundary),
        fetch_inputs=2 * work.fetch_inputs, update_rows=2 * work.update_rows,
    )  # fmt: skip
