"""bfloat16 as the int16 it is made of, for Triton kernels: no conversion has a rounding of its own on any device."""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportInvalidTypeForm=false, reportArgumentType=false

import torch
import triton
import triton.language as tl
from torch import Tensor


def as_bits(tensor: Tensor) -> Tensor:
    """A view of bfloat16 as int16; other dtypes as they are."""
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor


@triton.jit
def load_float(pointer, mask):
    """fp32 of fp32, or of bf16 that is read as int16; zero outside the mask, which may be None."""
    x = tl.load(pointer) if mask is None else tl.load(pointer, mask=mask, other=0)
    if x.dtype == tl.int16:
        return (x.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return x


@triton.jit
def rounded_bits(x):
    """fp32 -> bf16 as int16, to nearest, ties to even; any NaN becomes the same one."""
    bits = x.to(tl.uint32, bitcast=True)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    return (tl.where(x == x, rounded, 0x7FC00000) >> 16).to(tl.int16)
