"""How long the steps of a run will take: its batches, its model and a machine's rates, put together."""

from functools import lru_cache, partial
from typing import Any

import torch

from slideformer.data.batches import Batch, BatchStream
from slideformer.engine.operations import count_operations
from slideformer.models.architecture import Decoder
from slideformer.plan.operations import StepTokens
from slideformer.plan.pace import Pace
from slideformer.plan.piece_seconds import NAMES
from slideformer.plan.plan import Plan
from slideformer.plan.rates import MachineRates
from slideformer.plan.timing import StepTiming, predict

SAMPLED_STEPS = 16


def pace_of(
    model_config: Any,
    stream: BatchStream,
    steps: int,
    rates: MachineRates | None,
    *,
    dtype: torch.dtype,
    clipping: bool,
    fused: bool,
    trust_remote_code: bool,
) -> Pace | None:
    """What an average step takes, for any plan; None where the model cannot be counted, or the machine or `dtype` was
    not measured.

    Args:
        steps: of the run.
        fused: whether blocks run on fused kernels.
    """
    if rates is None or NAMES[dtype] not in rates.compute.matmul_flops:
        return None
    plain = Decoder(model_config, torch.device("cpu"), None, None, trust_remote_code)
    operations = count_operations(plain, dtype, fused)
    if operations is None:
        return None
    return Pace(operations, lru_cache(partial(average_step, stream, steps)), rates, clipping)


def forecast(plan: Plan, pace: Pace, dtype: torch.dtype, steps: int) -> StepTiming:
    """The timing of an average step of `steps`."""
    tokens = pace.tokens_of(plan.sizes.micro_batch_size)
    return predict(plan.model, pace.operations, plan.sizes, tokens, pace.rates, dtype, pace.clipping, steps)


def average_step(stream: BatchStream, steps: int, micro_batch_size: int) -> StepTokens:
    """What a step computes, from steps all over the run."""
    count = min(steps, SAMPLED_STEPS)
    batches = [stream.at(k * steps // count) for k in range(count)]
    micro_batches = [micro for batch in batches for micro in batch.split(micro_batch_size)]
    computed = sum(micro.input_ids.numel() for micro in micro_batches)
    return StepTokens(
        tokens=sum(batch.tokens for batch in batches) / count,
        computed=computed / count,
        trained=sum(batch.trained_tokens for batch in batches) / count,
        context=sum(map(_pairs, micro_batches)) / computed,
    )


def _pairs(batch: Batch) -> int:
    """Pairs of tokens that attention multiplies."""
    if batch.documents is None:
        rows, length = batch.input_ids.shape
        return rows * length**2
    return sum(length**2 for row in batch.documents for length in row)
