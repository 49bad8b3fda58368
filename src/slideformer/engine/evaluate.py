"""Forward only: the loss of held-out batches through the same window."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
            entered, xs = _last_hidden(e, passes, micro_batches, more=k + 1 < len(batches))
            for batch, x in zip(entered, xs, strict=True):
                run(compute.add_head_loss, e.decoder, passes.head, passes.shell, x, batch, head_chunk, total)
        e.lanes.compute.record().wait()
    tokens = sum(micro_batch.trained_tokens for batch in batches for micro_batch in batch)
    return Evaluation(float(total) / tokens, tokens)


def _last_hidden(
    e: ForwardMachinery, passes: Passes, micro_batches: list[Batch], more: bool
) -> tuple[list[compute.MicroBatch], list[Any]]:
    """The micro-batches on the device, and their hidden states [b, t, hidden] behind the last block."""
    run, decoder = e.lanes.compute.run, e.decoder
    batches, rows, _ = e.feed(micro_batches, seed=0)
    inputs = [run(compute.enter, decoder, batch, rows, passes.shell) for batch in batches]
    xs = [run(compute.hidden_of, entered) for entered in inputs]
    for i, weights in passes.blocks(more):
        for m, batch in enumerate(batches):
            xs[m] = run(compute.block_forward, decoder, i, weights, xs[m], inputs[m], batch)
    return batches, xs
