"""Compares the Triton accumulation with PyTorch, in Triton's interpreter: python -m interpreted_accumulate."""

import os

os.environ["TRITON_INTERPRET"] = "1"

from accumulations import SIZES, check_accumulation

from slideformer.kernels.accumulate_triton import accumulate_triton

if __name__ == "__main__":
    for size in SIZES:
        check_accumulation(accumulate_triton, size, "cpu")
    print("the same bits")
