"""Forward only: the loss of held-out batches through the same window."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from slideformer.data.batches import Batch
from slideformer.engine import compute
from slideformer.engine.forward import ForwardMachinery, Passes


@dataclass(frozen=True)
class Evaluation:
    """The mean negative log-likelihood `loss` of `tokens` trained tokens."""

    loss: float
    tokens: int


def evaluate(e: ForwardMachinery, batches: Sequence[list[Batch]], head_chunk: int) -> Evaluation:
    """The loss over all batches (lists of micro-batches), without dropout; the host waits once, at the end.

    Summed in fp64 over tokens, so that how they were split into batches decides nothing but rounding.

    Args:
        head_chunk: tokens whose logits exist at once.
    """
    run, total = e.lanes.compute.run, torch.empty((), dtype=torch.float64, device=e.lanes.device)
    run(total.zero_)
    with e.decoder.without_dropout(), Passes(e) as passes:
        for k, micro_batches in enumerate(batches):
            enters = [compute.enter] * len(micro_batches)
            for batch, x in zip(*passes.hidden(micro_batches, enters, more=k + 1 < len(batches)), strict=True):
                run(compute.add_head_loss, e.decoder, passes.head, passes.shell, x, batch, head_chunk, total)
        e.lanes.compute.record().wait()
    tokens = sum(micro_batch.trained_tokens for batch in batches for micro_batch in batch)
    return Evaluation(float(total) / tokens, tokens)
