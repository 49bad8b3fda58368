"""Head and loss with the head in shards of the vocabulary: what the compute lane runs.

The model's tail up to the head runs once for each token, before the first shard, and backward once behind the last. In
between the head's input and its gradient wait, the gradient in fp32, and every shard passes twice.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from slideformer.engine.compute import MicroBatch, Weights, tail_backward
from slideformer.engine.tape import as_leaves, gradients_of
from slideformer.kernels.cross_entropy_shards import SoftmaxStatistics, add_shard, shard_gradient
from slideformer.memory.gradients import Accumulator
from slideformer.models.architecture import Decoder
from slideformer.models.head_matmul import ShardMatmul


@dataclass(frozen=True)
class HeadTokens:
    """The p trained tokens of a micro-batch before the head.

    Attributes:
        hidden: [p, width] in the compute dtype, the head's input.
        d_hidden: fp32 [p, width], its gradient, summed over shards.
        statistics: of the softmax.
    """

    hidden: Tensor
    d_hidden: Tensor
    statistics: SoftmaxStatistics


def enter_head(decoder: Decoder, shell: Weights, x: Tensor, batch: MicroBatch, chunk: int) -> HeadTokens:
    """The tail of the model up to its head, over the trained tokens of x [b, t, hidden]."""
    flat = decoder.boundary.by_token(x)
    with torch.no_grad():
        parts = [_head_input(decoder, shell, flat, positions) for positions in batch.positions.split(chunk)]
    hidden = parts[0] if len(parts) == 1 else torch.cat(parts)
    d_hidden = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    return HeadTokens(hidden, d_hidden, SoftmaxStatistics.of(len(hidden), hidden.device))


def _head_input(decoder: Decoder, shell: Weights, flat: Tensor, positions: Tensor) -> Tensor:
    hidden = decoder.boundary.from_tokens(flat.index_select(0, positions), len(positions))
    return decoder.tail.head_input(hidden, shell).flatten(0, 1)


def add_statistics(
    decoder: Decoder, weight: Tensor, first: int, shell: Weights, tokens: HeadTokens, batch: MicroBatch, chunk: int
) -> None:
    """First pass of a shard: `weight` [v, width], the vocabulary's entries from `first` on."""
    with torch.no_grad():
        for start, stop in _chunks(tokens, chunk):
            hidden = tokens.hidden[start:stop]
            logits = decoder.tail.shard_logits(
                lambda part=hidden: (part @ weight.mT).unsqueeze(1), weight, first, stop - start, shell
            ).flatten(0, 1)  # fmt: skip
            add_shard(logits, batch.targets[start:stop], first, tokens.statistics.part(start, stop))
            del logits


def add_shard_gradients(
    decoder: Decoder,
    weight: Tensor,
    weight_gradient: Tensor | None,
    first: int,
    shell: Weights,
    tokens: HeadTokens,
    batch: MicroBatch,
    trained_tokens: int,
    chunk: int,
    into: Accumulator,
) -> None:
    """Second pass of a shard: adds its part of the head's gradient to `weight_gradient` (fp32 [v, width]; None if
    frozen), of the head's input's to `tokens`, and of what the model does behind its head to `into`."""
    leaves = as_leaves(dict(shell), decoder.frozen)
    trained = [leaf for leaf in leaves.values() if leaf.requires_grad]
    log_sum = tokens.statistics.log_sum()
    for start, stop in _chunks(tokens, chunk):
        hidden, d_hidden = tokens.hidden[start:stop].detach().requires_grad_(), tokens.d_hidden[start:stop]

        def product(hidden: Tensor = hidden, d_hidden: Tensor = d_hidden) -> Tensor:
            return ShardMatmul.apply(hidden, weight, weight_gradient, d_hidden).unsqueeze(1)

        with torch.enable_grad():
            logits = decoder.tail.shard_logits(product, weight, first, stop - start, leaves).flatten(0, 1)
        d_logits = shard_gradient(
            logits, batch.targets[start:stop], first, log_sum[start:stop], 1.0 / trained_tokens
        )  # fmt: skip
        _, *gradients = gradients_of([logits], [hidden, *trained], [d_logits])
        del logits, d_logits  # before the next chunk's exist
        into.add(gradients)


def add_loss(tokens: HeadTokens, trained_tokens: int, loss: Tensor) -> None:
    """Add the micro-batch's share of the step's mean to `loss` (fp32 scalar), behind the first pass."""
    statistics = tokens.statistics
    loss.add_((statistics.log_sum() - statistics.target_logit).sum() / trained_tokens)


def leave_head(
    decoder: Decoder, shell: Weights, x: Tensor, batch: MicroBatch, tokens: HeadTokens, chunk: int, into: Accumulator
) -> Tensor:
    """Backward of `enter_head`: returns dx, and adds the shell's gradients to `into`."""

    def of_chunk(part: slice, hidden: Tensor, leaves: Weights) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            output = decoder.tail.head_input(hidden, leaves)
        return output, tokens.d_hidden[part].to(output.dtype).view(output.shape)

    return tail_backward(decoder, shell, x, batch, chunk, into, of_chunk)


def _chunks(tokens: HeadTokens, chunk: int) -> list[tuple[int, int]]:
    count = len(tokens.hidden)
    return [(start, min(start + chunk, count)) for start in range(0, count, chunk)]
