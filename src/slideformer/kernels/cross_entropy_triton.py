"""The Triton kernel behind `cross_entropy`: a row a program, log-sum in one pass, gradient in a second."""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportInvalidTypeForm=false, reportArgumentType=false

import torch
import triton
import triton.language as tl
from torch import Tensor

OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}  # pinned: the default is not the same in all versions


@triton.jit
def _cross_entropy_kernel(logits, gradient, targets, losses, row_stride, vocabulary, scale, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    gradient += row * row_stride
    target = tl.load(targets + row)
    target_logit = tl.load(logits + target).to(tl.float32)  # before the second pass overwrites it

    largest = tl.full([block], float("-inf"), tl.float32)
    total = tl.zeros([block], tl.float32)  # a running sum a lane: one reduction a row instead of one a block
    for start in range(0, vocabulary, block):
        column = start + tl.arange(0, block)
        z = tl.load(logits + column, mask=column < vocabulary, other=float("-inf")).to(tl.float32)
        new_largest = tl.maximum(largest, z)
        shift = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        total = total * tl.exp(largest - shift) + tl.exp(z - shift)
        largest = new_largest
    row_largest = tl.max(largest, axis=0)
    log_sum = row_largest + tl.log(tl.sum(total * tl.exp(largest - row_largest), axis=0))
    tl.store(losses + row, (log_sum - target_logit) * scale)

    for start in range(0, vocabulary, block):
        column = start + tl.arange(0, block)
        z = tl.load(logits + column, mask=column < vocabulary, other=float("-inf")).to(tl.float32)
        g = tl.exp(z - log_sum) - tl.where(column == target, 1.0, 0.0)
        tl.store(gradient + column, (g * scale).to(gradient.dtype.element_ty), mask=column < vocabulary)


def cross_entropy_triton(logits: Tensor, targets: Tensor, scale: float, gradient: Tensor) -> Tensor:
    """Write the gradient to `gradient` (which may be `logits`) and return the loss, fp32 scalar.

    Args:
        logits, gradient: [n, vocabulary] with equal strides, rows contiguous.
        targets: int64 [n].
    """
    n, vocabulary = logits.shape
    assert logits.stride() == gradient.stride() and logits.stride(1) == 1
    losses = torch.empty(n, dtype=torch.float32, device=logits.device)
    block = min(4096, triton.next_power_of_2(vocabulary))
    if n:
        _cross_entropy_kernel[(n,)](
            logits, gradient, targets, losses, logits.stride(0), vocabulary, scale, block=block, **OPTIONS
        )
    return losses.sum()
