"""DeviceAdam on CPU tensors; on a GPU: tests/gpu/test_gpu_adamw.py."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from adam_states import HYPER, AdamState, assert_same_state, cut, make_gradient, make_state

from slideformer.optim.adamw import LayerAdam
from slideformer.optim.device_adam import DeviceAdam
from slideformer.optim.rounding import Rounding

SIZE = 5001


def layer_adam(state: AdamState, rounding: Rounding | None = None) -> LayerAdam:
    return LayerAdam(**state.tensors(), decay_spans=cut(SIZE), rounding=rounding)


def device_adam(state: AdamState, rounding: Rounding | None = None) -> DeviceAdam:
    return DeviceAdam(**state.tensors(), decay_spans=cut(SIZE), rounding=rounding)


@pytest.mark.parametrize("moment_dtype", [torch.float32, torch.bfloat16])
def test_steps_as_layer_adam_on_the_cpu(moment_dtype: torch.dtype):
    state, expected = (make_state(SIZE, moment_dtype) for _ in range(2))
    ours, reference = device_adam(state, Rounding(3, 4)), layer_adam(expected, Rounding(3, 4))
    spans = [(0, 7, False), (100, 201, True)]
    for step in range(1, 4):
        hyper, gradient = replace(HYPER, step=step), make_gradient(SIZE, torch.bfloat16, step)
        for adam in (ours, reference):
            adam.step(gradient, hyper)
            adam.step_spans(spans, None, hyper)
    assert_same_state(state, expected)


@pytest.mark.parametrize("gate", [1.0, 0.0, 3.4e38])
def test_a_finite_gate_changes_nothing(gate: float):
    state, expected = (make_state(SIZE, torch.float32) for _ in range(2))
    gradient = make_gradient(SIZE, torch.float32, 0)
    device_adam(state).step(gradient, HYPER, torch.tensor(gate))
    layer_adam(expected).step(gradient, HYPER)
    assert_same_state(state, expected)


@pytest.mark.parametrize("gate", [math.nan, math.inf, -math.inf])
def test_a_gate_that_is_not_finite_stops_the_step(gate: float):
    state, before = (make_state(SIZE, torch.float32) for _ in range(2))
    adam = device_adam(state)
    adam.step(make_gradient(SIZE, torch.float32, 0), HYPER, torch.tensor(gate))
    adam.step_spans([(0, SIZE, True)], None, HYPER, torch.tensor(gate))
    assert_same_state(state, before)


def test_wrong_tensors_are_refused():
    state = make_state(SIZE, torch.float32)

    def remade(**other: Any) -> DeviceAdam:
        arguments: dict[str, Any] = state.tensors() | {"decay_spans": []}
        arguments.update(other)
        return DeviceAdam(**arguments)

    with pytest.raises(TypeError, match="lo is contiguous torch.int32 on cpu; it must be contiguous int16 on cpu"):
        remade(lo=state.lo.int())
    with pytest.raises(TypeError, match="exp_avg_sq is contiguous torch.bfloat16"):
        remade(exp_avg_sq=state.exp_avg_sq.bfloat16())
    with pytest.raises(TypeError, match="lo is contiguous torch.int16 on meta; .* on cpu"):
        remade(lo=state.lo.to("meta"))
    with pytest.raises(ValueError, match="lies outside a layer of 5001 elements"):
        remade(decay_spans=[(0, SIZE + 1, True)])
    adam = device_adam(state)
    with pytest.raises(ValueError, match="lies outside a layer of 5001 elements"):
        adam.step_spans([(-1, 4, True)], None, HYPER)
    with pytest.raises(TypeError, match="gate is contiguous torch.float64"):
        adam.step(None, HYPER, torch.tensor(1.0, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"gate has shape \[1\]; expected \[\]"):
        adam.step(None, HYPER, torch.ones(1))
    assert_same_state(state, make_state(SIZE, torch.float32))
