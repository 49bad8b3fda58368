"""The head's matrix product, whose weight gradient goes to an fp32 buffer: of the whole vocabulary, or of a shard."""

from typing import Any

import torch
from torch import Tensor


class HeadMatmul(torch.autograd.Function):
    """logits = hidden @ weight.T; in backward, grad += d_logits.T @ hidden in fp32.

    hidden [..., h] and weight [v, h] in the compute dtype, grad fp32 [v, h].
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(hidden)
        ctx.weight, ctx.grad = weight, grad
        return hidden @ weight.mT

    @staticmethod
    def backward(ctx: Any, d_logits: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (hidden,) = ctx.saved_tensors
        flat_hidden, flat_d_logits = hidden.flatten(0, -2), d_logits.flatten(0, -2)
        add_product(ctx.grad, flat_d_logits.mT, flat_hidden)
        return d_logits @ ctx.weight, None, None


class ShardMatmul(torch.autograd.Function):
    """logits = hidden @ weight.T for a shard of the vocabulary; in backward, in fp32,
    weight_grad += d_logits.T @ hidden and hidden_grad += d_logits @ weight.

    hidden [n, h] and weight [v, h] in the compute dtype; weight_grad fp32 [v, h] or None, hidden_grad fp32 [n, h].
    Autograd is given no gradient: what depends on the sum over all shards follows when it is complete.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, hidden: Tensor, weight: Tensor, weight_grad: Tensor | None, hidden_grad: Tensor
    ) -> Tensor:
        ctx.save_for_backward(hidden)
        ctx.weight, ctx.weight_grad, ctx.hidden_grad = weight, weight_grad, hidden_grad
        return hidden @ weight.mT

    @staticmethod
    def backward(ctx: Any, d_logits: Tensor) -> tuple[None, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (hidden,) = ctx.saved_tensors
        if ctx.weight_grad is not None:
            add_product(ctx.weight_grad, d_logits.mT, hidden)
        add_product(ctx.hidden_grad, d_logits, ctx.weight)
        return None, None, None, None


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total (fp32) += left @ right, summed in fp32 whatever their dtype."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
    elif left.is_cuda:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total += left.float() @ right.float()
