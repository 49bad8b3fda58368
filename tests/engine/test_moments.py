"""Moments in 16 bits through the engine: the same bits whatever the memory, other bits for another seed or unit."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from tiny_models import tiny_model
from tiny_runs import SIZES, States, Subject, batch_at, differences, hyper_at, make_records, states_of, subject

from slideformer.engine.engine import Engine
from slideformer.lanes.fuzzer import fuzzed_lanes
from slideformer.lanes.lanes import Lanes
from slideformer.memory.host import LayerState
from slideformer.plan.sizes import Sizes

RECORDS = make_records(12)
BF16 = replace(SIZES, optimizer_state="bf16")


@cache
def tiny(family: str) -> Subject:
    return subject(tiny_model(family))


def trained(
    family: str, sizes: Sizes = BF16, seed: int = 0, lanes: Lanes | None = None, max_norm: float | None = None
) -> States:
    """The states behind three steps."""
    of = tiny(family)
    start = dict(of.model.named_parameters())
    with Engine(of.decoder, sizes, torch.float32, lanes, threads=1, seed=seed) as engine:
        engine.load((u, {n: start[n].detach() for n in names}) for u, names in engine.parameter_groups().items())
        for step in (1, 2, 3):
            engine.train_step(batch_at(RECORDS, 4, step - 1), hyper_at(step), max_norm)
        return states_of(engine)


@pytest.mark.parametrize("family", ["llama", "qwen3"], ids=["untied", "tied"])
def test_depth_boundaries_and_timing_change_no_bit(family: str):
    clipping = replace(BF16, gradient_slots=3)
    expected = trained(family)
    assert differences(trained(family, replace(BF16, window_depth=3, host_boundaries=2)), expected) == []
    assert differences(trained(family, clipping, max_norm=1e9), expected) == []
    for seed in range(2):
        assert differences(trained(family, lanes=fuzzed_lanes(seed)[0]), expected) == []


def test_moments_are_bf16_and_stay_near_those_of_fp32():
    bf16, fp32 = trained("llama"), trained("llama", SIZES)
    for unit in ("embedding", "model.layers.1", "head"):
        for ours, exact in zip(bf16[unit][2:], fp32[unit][2:], strict=True):
            assert ours.dtype == torch.bfloat16 and exact.dtype == torch.float32
            apart = (ours.float() - exact).norm() / exact.norm()
            assert 0 < apart < 0.02  # a bf16 step is 2^-8 to 2^-7; three of them, random
        assert (bf16[unit][3] >= 0).all()


def test_another_seed_rounds_otherwise():
    one, other = trained("llama", seed=1), trained("llama", seed=2)
    assert differences(one, trained("llama", seed=1)) == []
    assert "model.layers.0" in differences(one, other)


def test_each_unit_has_its_own_random_bits():
    with Engine(tiny("llama").decoder, BF16, torch.float32, threads=1, seed=5) as engine:
        roundings = [state.adam.rounding for state in engine.states.values() if isinstance(state, LayerState)]
    assert len(roundings) == len(engine.states)
    assert [rounding.unit for rounding in roundings] == list(range(len(roundings)))
    assert {rounding.seed for rounding in roundings} == {5}


def test_memory_is_what_the_footprint_says():
    with Engine(tiny("llama").decoder, BF16, torch.float32, threads=1) as engine:
        parameters = sum(state.layout.numel for state in engine.states.values())
        assert engine.allocator.allocated_bytes["optimizer moments"] == 4 * parameters
