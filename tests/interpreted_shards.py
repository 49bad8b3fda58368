"""Compares the kernels of the sharded loss with PyTorch, in Triton's interpreter: python -m interpreted_shards."""

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch

from slideformer.kernels.cross_entropy_shards import SoftmaxStatistics, add_shard, shard_gradient
from slideformer.kernels.cross_entropy_shards_triton import shard_gradient_triton, shard_statistics_triton

TOKENS, WIDTHS = 5, (8, 5000, 130)


def check(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    shards = [(10 * torch.randn(TOKENS, width)).to(dtype) for width in WIDTHS]
    shards[0][1] = float("-inf")
    targets = torch.tensor([0, 7, 8, 5007, 5137])
    reference, ours = (SoftmaxStatistics.of(TOKENS, targets.device) for _ in range(2))
    firsts = [sum(WIDTHS[:k]) for k in range(len(WIDTHS))]
    targets[1] = 9  # the second row's target is where its logits are finite
    for first, shard in zip(firsts, shards, strict=True):
        add_shard(shard, targets, first, reference)
        shard_statistics_triton(shard, targets, first, ours.largest, ours.total, ours.target_logit)
    torch.testing.assert_close(ours.log_sum(), reference.log_sum(), rtol=1e-6, atol=1e-6)
    assert torch.equal(ours.target_logit, reference.target_logit)
    for first, shard in zip(firsts, shards, strict=True):
        expected = shard_gradient(shard, targets, first, reference.log_sum(), 0.25)
        shard_gradient_triton(shard, targets, first, reference.log_sum(), 0.25, shard)
        torch.testing.assert_close(shard, expected)


if __name__ == "__main__":
    check(torch.float32)
    check(torch.bfloat16)
    print("the same values")
