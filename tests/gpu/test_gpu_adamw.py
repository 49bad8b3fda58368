"""AdamW on the GPU gives the bits of AdamW on the CPU."""

import math
from dataclasses import replace

import pytest
import torch
from adam_states import CASES, HYPER, AdamState, assert_same_state, cut, make_gradient, make_state

from slideformer.optim.adamw import LayerAdam, adamw_reference
from slideformer.optim.device_adam import DeviceAdam
from slideformer.optim.planes import join, split
from slideformer.optim.rounding import Rounding

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.bfloat16]
ROUNDING = Rounding(seed=5, unit=2)


def both(numel: int, moment_dtype: torch.dtype) -> tuple[AdamState, DeviceAdam, AdamState, LayerAdam]:
    expected = make_state(numel, moment_dtype)
    state = expected.to("cuda")
    ours = DeviceAdam(**state.tensors(), decay_spans=cut(numel), rounding=ROUNDING)
    return state, ours, expected, LayerAdam(**expected.tensors(), decay_spans=cut(numel), rounding=ROUNDING)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("gradient_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("moment_dtype", DTYPES, ids=str)
def test_fifty_steps_equal_the_cpu(moment_dtype: torch.dtype, gradient_dtype: torch.dtype, case: str):
    numel = 70_001
    state, ours, expected, reference = both(numel, moment_dtype)
    for step in range(1, 51):
        hyper = replace(HYPER, step=step, **CASES[case])
        gradient = None if step % 10 == 7 else make_gradient(numel, gradient_dtype, step)
        ours.step(None if gradient is None else gradient.cuda(), hyper, torch.tensor(2.0, device="cuda"))
        reference.step(gradient, hyper)
    assert_same_state(state, expected)


@pytest.mark.parametrize("moment_dtype", DTYPES, ids=str)
def test_numbers_that_stay_finite_equal_the_cpu(moment_dtype: torch.dtype):
    """Fifty steps in which no infinity and no NaN takes elements out of the comparison."""
    numel = 1_000_003
    state, ours, expected, reference = both(numel, moment_dtype)
    for step in range(1, 51):
        gradient = (torch.randn(numel) * torch.rand(numel).pow(12)).bfloat16()
        hyper = replace(HYPER, step=step, grad_scale=0.7)
        ours.step(gradient.cuda(), hyper)
        reference.step(gradient, hyper)
    assert_same_state(state, expected)


@pytest.mark.parametrize("moment_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [0, 1, 3, 8])
def test_spans_and_tensors_at_any_alignment(moment_dtype: torch.dtype, offset: int):
    numel = 10_007
    expected = make_state(numel, moment_dtype)
    shifted = {
        name: torch.empty(numel + offset, dtype=tensor.dtype, device="cuda")[offset:].copy_(tensor)
        for name, tensor in expected.tensors().items()
    }
    spans = [(0, 1, True), (3, 20, False), (1000, 1024, True), (1025, 7777, False), (8191, numel, True)]
    ours = DeviceAdam(**shifted, decay_spans=[], rounding=ROUNDING)
    reference = LayerAdam(**expected.tensors(), decay_spans=[], rounding=ROUNDING)
    for dtype in DTYPES:
        gradient = make_gradient(numel, dtype, 1)
        on_gpu = torch.empty(numel + offset, dtype=dtype, device="cuda")[offset:].copy_(gradient)
        ours.step_spans(spans, on_gpu, HYPER)
        reference.step_spans(spans, gradient, HYPER)
    assert_same_state(AdamState(**shifted), expected)


@pytest.mark.parametrize("gate", [math.nan, -math.nan, math.inf, -math.inf])
def test_a_gate_that_is_not_finite_stops_the_step(gate: float):
    numel = 10_007
    state, ours, before, _ = both(numel, torch.float32)
    gradient = make_gradient(numel, torch.float32, 0).cuda()
    ours.step(gradient, HYPER, torch.tensor(gate, device="cuda"))
    ours.step_spans([(0, numel, True)], None, HYPER, torch.tensor(gate, device="cuda"))
    assert_same_state(state, before)


def test_the_gate_is_read_when_the_kernel_runs():
    numel = 10_007
    state, ours, expected, reference = both(numel, torch.float32)
    gradient = make_gradient(numel, torch.float32, 0)
    gate = torch.zeros((), device="cuda")
    on_gpu = gradient.cuda()
    torch.cuda._sleep(50_000_000)  # so that what follows is enqueued before any of it runs
    gate.fill_(math.inf)
    ours.step(on_gpu, HYPER, gate)
    gate.fill_(1.0)
    ours.step(on_gpu, HYPER, gate)
    reference.step(gradient, HYPER)
    assert_same_state(state, expected)


def test_no_memory_is_taken():
    numel = 10_007
    _, ours, _, _ = both(numel, torch.bfloat16)
    gradient, gate = make_gradient(numel, torch.bfloat16, 0).cuda(), torch.ones((), device="cuda")
    ours.step(gradient, HYPER, gate)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    ours.step(gradient, HYPER, gate)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_more_than_2_to_the_31_elements():
    numel, piece = 2**31 + 5001, 1000
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of GPU memory")
    hi, exp_avg, exp_avg_sq, gradient = (torch.zeros(numel, dtype=torch.bfloat16, device="cuda") for _ in range(4))
    lo = torch.zeros(numel, dtype=torch.int16, device="cuda")
    pieces = [slice(first, first + piece) for first in (0, 2**31 - piece // 2, numel - piece)]
    states = [make_state(piece, torch.bfloat16, seed) for seed in range(3)]
    grads = [make_gradient(piece, torch.bfloat16, seed) for seed in range(3)]
    for place, state, grad in zip(pieces, states, grads, strict=True):
        for whole, part in zip((hi, lo, exp_avg, exp_avg_sq), state.tensors().values(), strict=True):
            whole[place] = part.cuda()
        gradient[place] = grad.cuda()
    adam = DeviceAdam(hi, lo, exp_avg, exp_avg_sq, [(0, 5, True), (5, numel, True)], ROUNDING)
    adam.step(gradient, HYPER)
    for place, state, grad in zip(pieces, states, grads, strict=True):
        master = torch.empty(piece)
        join(state.hi, state.lo, master)
        adamw_reference(master, state.exp_avg, state.exp_avg_sq, grad, HYPER, True, ROUNDING, first=place.start)
        split(master, state.hi, state.lo)
        assert_same_state(AdamState(hi[place], lo[place], exp_avg[place], exp_avg_sq[place]), state)
