"""Cross-entropy over logits that come a shard of the vocabulary at a time, in two passes.

First, over shards, for each token: the largest logit so far, the sum of exponentials below it, and the target's logit
(the online softmax of Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018). Then, over shards
again, the gradient: scale * (exp(z - log_sum) - onehot(t)), the same as `cross_entropy`'s.
"""

from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from slideformer.kernels.cross_entropy import OUTPUT_NOT_SAVED

if find_spec("triton") is not None:
    from slideformer.kernels.cross_entropy_shards_triton import shard_gradient_triton, shard_statistics_triton

SPENDABLE = {*OUTPUT_NOT_SAVED, "ShardMatmulBackward"}


@dataclass(frozen=True)
class SoftmaxStatistics:
    """What the softmax of n tokens needs of the shards seen so far; fp32 [n] each.

    Attributes:
        largest: logit.
        total: sum of exp(logit - largest).
        target_logit: 0 until its shard was seen.
    """

    largest: Tensor
    total: Tensor
    target_logit: Tensor

    @staticmethod
    def of(n: int, device: torch.device) -> "SoftmaxStatistics":
        largest = torch.full((n,), float("-inf"), dtype=torch.float32, device=device)
        return SoftmaxStatistics(largest, torch.zeros_like(largest), torch.zeros_like(largest))

    def part(self, start: int, stop: int) -> "SoftmaxStatistics":
        """Views of some tokens'."""
        return SoftmaxStatistics(self.largest[start:stop], self.total[start:stop], self.target_logit[start:stop])

    def log_sum(self) -> Tensor:
        """Of the exponentials of all logits seen."""
        return self.largest + self.total.log()


def add_shard(logits: Tensor, targets: Tensor, first: int, statistics: SoftmaxStatistics) -> None:
    """Add a shard's logits to the statistics of its tokens.

    Args:
        logits: [n, shard], rows contiguous, outside of autograd.
        targets: int64 [n], ids of the whole vocabulary.
        first: the id of the shard's first entry.
    """
    if logits.is_cuda:
        shard_statistics_triton(
            logits, targets, first, statistics.largest, statistics.total, statistics.target_logit
        )  # fmt: skip
        return
    z = logits.float()
    largest = torch.maximum(statistics.largest, z.amax(-1))
    shift = torch.where(largest == float("-inf"), 0.0, largest)
    total = statistics.total * (statistics.largest - shift).exp() + (z - shift[:, None]).exp().sum(-1)
    inside, column = _columns(targets, first, logits.shape[1])
    target_logit = z.gather(1, column[:, None])[:, 0]
    statistics.target_logit.copy_(torch.where(inside, target_logit, statistics.target_logit))
    statistics.largest.copy_(largest)
    statistics.total.copy_(total)


def shard_gradient(logits: Tensor, targets: Tensor, first: int, log_sum: Tensor, scale: float) -> Tensor:
    """The gradient [n, shard] in the logits' dtype; on a GPU it takes their memory, where autograd does not need them.

    Args:
        log_sum: fp32 [n], over the whole vocabulary.
        logits, targets, first: as in `add_shard`.
    """
    values = logits.detach()
    if values.is_cuda:
        node = logits.grad_fn
        spendable = node is None or node.name() in SPENDABLE
        gradient = values if spendable else torch.empty_like(values)
        shard_gradient_triton(values, targets, first, log_sum, scale, gradient)
        if spendable and node is not None:
            torch.autograd.graph.increment_version(logits)  # if something saved them after all, autograd refuses
        return gradient
    gradient = torch.exp(values.float() - log_sum[:, None])
    inside, column = _columns(targets, first, values.shape[1])
    gradient.scatter_add_(1, column[:, None], -inside.float()[:, None])
    return gradient.mul_(scale).to(values.dtype)


def _columns(targets: Tensor, first: int, width: int) -> tuple[Tensor, Tensor]:
    """Whether each target is in the shard, and its column there (any, if it is not)."""
    column = targets - first
    return (column >= 0) & (column < width), column.clamp(0, width - 1)
