"""A micro-batch's gradient, added to the sum of those before.

PyTorch adds bf16 to fp32 in narrow accesses: on one H200, 0.41 ms for the gradients of a block of 101M parameters,
which are 1 GB of traffic and could be 0.23.
"""

from importlib.util import find_spec

import torch
from torch import Tensor

if find_spec("triton") is not None:
    from slideformer.kernels.accumulate_triton import accumulate_triton

SMALL = 2**16  # elements; below, launching PyTorch's kernel takes the host less time


def accumulate(total: Tensor, gradient: Tensor, first: bool) -> None:
    """total += gradient, or with `first` total = gradient; exactly PyTorch's sum.

    Args:
        total: float32, or the gradient's dtype.
        gradient: of the same shape and device.
    """
    if fits_kernel(total, gradient):
        accumulate_triton(total, gradient, first)
    elif first:
        total.copy_(gradient)
    else:
        total.add_(gradient)


def fits_kernel(total: Tensor, gradient: Tensor) -> bool:
    """Whether it is what PyTorch is slow at."""
    return (
        gradient.is_cuda
        and gradient.dtype == torch.bfloat16
        and total.dtype == torch.float32
        and total.numel() >= SMALL
        and total.is_contiguous()
        and gradient.is_contiguous()
    )
