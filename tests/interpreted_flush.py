"""Compares the Triton gradient flush with PyTorch, in Triton's interpreter: python -m interpreted_flush."""

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
from gradient_flushes import DTYPES, SIZES, check_flush
from torch import Tensor

from slideformer.kernels import gradient_flush_triton

gradient_flush_triton.PROGRAMS = 8  # as many as make each one loop; the interpreter is slow


def flush(source: Tensor, destination: Tensor, square: Tensor, add: bool) -> None:
    partials = torch.full((gradient_flush_triton.PROGRAMS,), float("nan"))
    gradient_flush_triton.flush_gradient_triton(source, destination, square, partials, add)


if __name__ == "__main__":
    for size in SIZES:
        for source_dtype, destination_dtype in DTYPES:
            check_flush(flush, size, source_dtype, destination_dtype, "cpu", tolerance=1e-6)
    print("the same values")
