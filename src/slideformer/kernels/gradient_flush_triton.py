"""The Triton kernels behind `GradientFlush`: partial sums by program, then their sum; no atomics, so no chance."""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportInvalidTypeForm=false, reportArgumentType=false

import triton
import triton.language as tl
from torch import Tensor

from slideformer.kernels.bfloat16_triton import as_bits, load_float, rounded_bits

PROGRAMS = 1024  # about what an H200 runs at once; the same everywhere, so that sums do not depend on the device's size
OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}


@triton.jit
def _flush_piece(source, destination, element, mask):
    """Writes the elements in the destination's dtype and returns their squares, after rounding."""
    x = load_float(source + element, mask)
    if destination is not None:
        if destination.dtype.element_ty == tl.int16:
            bits = rounded_bits(x)
            tl.store(destination + element, bits, mask=mask)
            x = (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)
        else:
            tl.store(destination + element, x, mask=mask)
    return x * x


@triton.jit(do_not_specialize=["count"])
def _flush_kernel(source, destination, partials, count: tl.int64, block: tl.constexpr, programs: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    whole = count // block
    total = tl.zeros([block], tl.float32)  # a running sum a lane: one reduction a program
    for at in range(program, whole, programs):
        total += _flush_piece(source, destination, at * block + tl.arange(0, block), None)
    if program == whole % programs:
        element = whole * block + tl.arange(0, block)
        total += _flush_piece(source, destination, element, element < count)
    tl.store(partials + program, tl.sum(total, axis=0))


@triton.jit(do_not_specialize_on_alignment=["square"])
def _sum_kernel(partials, square, add: tl.constexpr, programs: tl.constexpr):
    total = tl.sum(tl.load(partials + tl.arange(0, programs)), axis=0)
    if add:
        total += tl.load(square)
    tl.store(square, total)


def flush_gradient_triton(source: Tensor, destination: Tensor, square: Tensor, partials: Tensor, add: bool) -> None:
    """As `GradientFlush`, for contiguous float32 and bfloat16 on one device; `partials` is float32 [PROGRAMS]."""
    written = None if destination is source else as_bits(destination)
    block = block_for(max(source.element_size(), destination.element_size()))
    _flush_kernel[(PROGRAMS,)](
        as_bits(source), written, partials, source.numel(), block=block, programs=PROGRAMS, **OPTIONS
    )
    _sum_kernel[(1,)](partials, square, add=add, programs=PROGRAMS, **OPTIONS)


def block_for(wider_bytes: int) -> int:
    """Elements a program takes at a time: one 16-byte access a thread to the wider of source and destination."""
    return 256 * 16 // wider_bytes
