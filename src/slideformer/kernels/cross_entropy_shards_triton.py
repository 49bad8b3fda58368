"""The Triton kernels behind `cross_entropy_shards`: a row a program."""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportInvalidTypeForm=false, reportArgumentType=false

import triton
import triton.language as tl
from torch import Tensor

OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}  # pinned: the default is not the same in all versions


@triton.jit(do_not_specialize=["first"])
def _statistics_kernel(logits, targets, largests, totals, target_logits, row_stride, width, first, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    column_of_target = tl.load(targets + row) - first
    largest = tl.full([block], float("-inf"), tl.float32)
    total = tl.zeros([block], tl.float32)
    for start in range(0, width, block):
        column = start + tl.arange(0, block)
        z = tl.load(logits + column, mask=column < width, other=float("-inf")).to(tl.float32)
        new_largest = tl.maximum(largest, z)
        shift = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        total = total * tl.exp(largest - shift) + tl.exp(z - shift)
        largest = new_largest
    before = tl.load(largests + row)
    row_largest = tl.maximum(tl.max(largest, axis=0), before)
    shift = tl.where(row_largest == float("-inf"), 0.0, row_largest)
    row_total = tl.sum(total * tl.exp(largest - shift), axis=0) + tl.load(totals + row) * tl.exp(before - shift)
    tl.store(largests + row, row_largest)
    tl.store(totals + row, row_total)
    inside = (column_of_target >= 0) & (column_of_target < width)
    target_logit = tl.load(logits + column_of_target, mask=inside, other=0.0).to(tl.float32)
    tl.store(target_logits + row, target_logit, mask=inside)


@triton.jit(do_not_specialize=["first", "scale"])
def _gradient_kernel(logits, gradient, targets, log_sums, row_stride, width, first, scale, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    gradient += row * row_stride
    column_of_target = tl.load(targets + row) - first
    log_sum = tl.load(log_sums + row)
    for start in range(0, width, block):
        column = start + tl.arange(0, block)
        z = tl.load(logits + column, mask=column < width, other=float("-inf")).to(tl.float32)
        g = tl.exp(z - log_sum) - tl.where(column == column_of_target, 1.0, 0.0)
        tl.store(gradient + column, (g * scale).to(gradient.dtype.element_ty), mask=column < width)


def shard_statistics_triton(
    logits: Tensor, targets: Tensor, first: int, largest: Tensor, total: Tensor, target_logit: Tensor
) -> None:
    """Add logits [n, shard], rows contiguous, to the statistics, fp32 [n] each; targets int64 [n]."""
    n, width = logits.shape
    assert logits.stride(1) == 1
    if n:
        _statistics_kernel[(n,)](
            logits, targets, largest, total, target_logit, logits.stride(0), width, first,
            block=_block(width), **OPTIONS,
        )  # fmt: skip


def shard_gradient_triton(
    logits: Tensor, targets: Tensor, first: int, log_sum: Tensor, scale: float, gradient: Tensor
) -> None:
    """Write the gradient [n, shard] to `gradient`, which may be `logits`; log_sum fp32 [n], targets int64 [n]."""
    n, width = logits.shape
    assert logits.stride() == gradient.stride() and logits.stride(1) == 1
    if n:
        _gradient_kernel[(n,)](
            logits, gradient, targets, log_sum, logits.stride(0), width, first, scale, block=_block(width), **OPTIONS
        )


def _block(width: int) -> int:
    return min(4096, triton.next_power_of_2(width))
