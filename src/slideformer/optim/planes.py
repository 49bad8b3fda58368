"""fp32 master weights as two 16-bit planes: `hi` is the bf16 weight a GPU computes with, `lo` the rest of the bits.

With `bits` the 32 bits of a value:

    hi = (bits + 0x8000) >> 16      rounds to bf16, ties away from zero
    lo = int16(bits)                the low half, signed
    bits = (hi << 16) + lo          for every one of the 2^32 patterns

Rounding half to even would not do: it rounds some ties down, and their rest, +0x8000, does not fit in int16.
docs/numerics.md says where `hi` differs from `master.to(torch.bfloat16)`.
"""

import torch
from torch import Tensor

from slideformer import _core
from slideformer.optim.threads import cpu_threads


def split(master: Tensor, hi: Tensor, lo: Tensor, threads: int | None = None) -> None:
    """Write the planes of `master`.

    Args:
        master: [n] float32, CPU, contiguous.
        hi: [n] bfloat16, overwritten.
        lo: [n] int16, overwritten.
        threads: OpenMP threads; by default all that this process may use.

    Raises:
        TypeError: a wrong dtype or device, or a strided tensor.
        ValueError: lengths differ.
    """
    _core.split(master, hi, lo, threads or cpu_threads())


def join(hi: Tensor, lo: Tensor, out: Tensor, threads: int | None = None) -> None:
    """Write the master that `hi` and `lo` hold into `out`: the exact inverse of `split`, same arguments and errors."""
    _core.join(hi, lo, out, threads or cpu_threads())


def split_reference(master: Tensor, hi: Tensor, lo: Tensor) -> None:
    """`split` in PyTorch integer operations, on any device; shapes and dtypes as there."""
    bits = master.view(torch.int32)
    hi.view(torch.int16).copy_((bits + 0x8000) >> 16)
    lo.copy_(bits)  # keeps the low 16 bits


def join_reference(hi: Tensor, lo: Tensor, out: Tensor) -> None:
    """`join` in PyTorch integer operations, on any device; shapes and dtypes as there."""
    bits = out.view(torch.int32)
    bits.copy_(hi.view(torch.int16)).bitwise_left_shift_(16).add_(lo)
