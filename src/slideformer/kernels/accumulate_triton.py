"""The Triton kernel behind `accumulate`: each element is read and written once, in 16-byte accesses."""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportInvalidTypeForm=false, reportArgumentType=false

import triton
import triton.language as tl
from torch import Tensor

from slideformer.kernels.bfloat16_triton import as_bits, load_float

BLOCK = 4096
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}


@triton.jit(do_not_specialize=["count"])
def _accumulate_kernel(total, gradient, count: tl.int64, first: tl.constexpr, block: tl.constexpr):
    element = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    mask = element < count
    x = load_float(gradient + element, mask)
    if not first:
        x += tl.load(total + element, mask=mask, other=0.0)
    tl.store(total + element, x, mask=mask)


def accumulate_triton(total: Tensor, gradient: Tensor, first: bool) -> None:
    """As `accumulate`, for contiguous float32 `total` and float32 or bfloat16 `gradient` on one device."""
    count = total.numel()
    _accumulate_kernel[(triton.cdiv(count, BLOCK),)](
        total, as_bits(gradient), count, first=first, block=BLOCK, **OPTIONS
    )
