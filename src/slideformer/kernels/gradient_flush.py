"""A gradient on its way out, in one pass: rounded to the dtype that leaves, and the sum of squares of what leaves."""

from importlib.util import find_spec

import torch
from torch import Tensor

if find_spec("triton") is not None:
    from slideformer.kernels.gradient_flush_triton import PROGRAMS, flush_gradient_triton
else:
    PROGRAMS = 0

IN_ONE_PASS = {torch.bfloat16, torch.float32}


class GradientFlush:
    """Rounds gradients and sums their squares. On a GPU in one pass, without a copy in fp32.

    The same gradient gives the same sum in every run.

    Args:
        device: of the gradients.
    """

    def __init__(self, device: torch.device):
        self._partials = torch.empty(PROGRAMS if device.type == "cuda" else 0, dtype=torch.float32, device=device)

    def __call__(self, source: Tensor, destination: Tensor, square: Tensor, add: bool = False) -> None:
        """destination = source, rounded to nearest even; square = sum(destination^2), or with `add` that much more.

        Args:
            source: [n] bfloat16 or float32, contiguous. Other dtypes take several passes.
            destination: [n], contiguous; may be `source` itself: then nothing is written.
            square: float32 scalar on the same device.
        """
        if source.is_cuda and {source.dtype, destination.dtype} <= IN_ONE_PASS:
            flush_gradient_triton(source, destination, square, self._partials, add)
        else:
            flush_reference(source, destination, square, add)


def flush_reference(source: Tensor, destination: Tensor, square: Tensor, add: bool) -> None:
    """The same in plain PyTorch."""
    if destination is not source:
        destination.copy_(source)
    squares = torch.linalg.vector_norm(destination, dtype=torch.float32).square()
    square.copy_(square + squares if add else squares)
