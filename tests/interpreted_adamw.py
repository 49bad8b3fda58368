"""Compares the Triton kernel of AdamW with the CPU's, in Triton's interpreter: python -m interpreted_adamw.

A process of its own: TRITON_INTERPRET counts when kernels are defined.
"""

import os
from dataclasses import replace

os.environ["TRITON_INTERPRET"] = "1"

import torch
from adam_states import CASES, HYPER, AdamState, assert_same_state, cut, make_gradient, make_state
from torch import Tensor

from slideformer.kernels.adamw_triton import adamw_triton
from slideformer.optim.adamw import AdamWStep, LayerAdam
from slideformer.optim.rounding import Rounding

SIZE, STEPS = 5001, 3
ROUNDING = Rounding(seed=5, unit=2)


def step(state: AdamState, gradient: Tensor | None, hyper: AdamWStep, gate: Tensor | None) -> None:
    scalars = vars(hyper.scalars())
    for start, stop, decayed in cut(SIZE):
        decay = scalars["decay"] if decayed else 1.0
        adamw_triton(
            state.hi,
            state.lo,
            state.exp_avg,
            state.exp_avg_sq,
            gradient,
            gate,
            (start, stop),
            **scalars | {"decay": decay},
            rounding_key=ROUNDING.key(hyper.step),
        )


def compare(moment_dtype: torch.dtype, gradient_dtype: torch.dtype, case: str) -> None:
    state, expected = (make_state(SIZE, moment_dtype) for _ in range(2))
    adam = LayerAdam(**expected.tensors(), decay_spans=cut(SIZE), rounding=ROUNDING)
    for number in range(1, STEPS + 1):
        hyper = replace(HYPER, step=number, **CASES[case])
        gradient = None if number == 2 else make_gradient(SIZE, gradient_dtype, number)
        step(state, gradient, hyper, torch.tensor(2.0) if number == 3 else None)
        adam.step(gradient, hyper)
        step(state, gradient, hyper, torch.tensor(float("nan" if number == 1 else "-inf")))  # changes nothing
    assert_same_state(state, expected)


if __name__ == "__main__":
    for case in CASES:
        compare(torch.float32, torch.float32, case)
    compare(torch.float32, torch.bfloat16, "scaled")
    compare(torch.bfloat16, torch.float32, "beta1 zero")
    compare(torch.bfloat16, torch.bfloat16, "scaled")
    print("the same bits")
