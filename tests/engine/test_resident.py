"""Where the state of a layer is, in host memory or on the device, decides no bit."""

from dataclasses import replace

import pytest
import torch
from tiny_models import tiny_model
from tiny_runs import (
    SIZES,
    States,
    Subject,
    batch_at,
    differences,
    hyper_at,
    make_records,
    same_bits,
    states_of,
    subject,
    tiny_engine,
)

from slideformer.engine.engine import Engine
from slideformer.errors import ConfigError
from slideformer.lanes.fuzzer import fuzzed_lanes
from slideformer.lanes.lanes import Lanes
from slideformer.memory.device_state import DeviceState
from slideformer.plan.sizes import Sizes

FAMILIES = ["llama", "qwen3", "gemma2", "gpt2"]  # the last three tied
BLOCKS = 3
RECORDS = make_records(12)
STEPS = 3
SLIDING = replace(SIZES, gradient_slots=BLOCKS)
BITES = 0.5

PLACES = [
    {"resident": 1},
    {"resident": BLOCKS},
    {"resident_ends": True},
    {"resident": 2, "resident_ends": True},
    {"resident": BLOCKS, "resident_ends": True, "kept": 2},
]


def tiny(family: str) -> Subject:
    return subject(tiny_model(family, **{"n_layer" if family == "gpt2" else "num_hidden_layers": BLOCKS}))


def trained(
    of: Subject, sizes: Sizes, max_norm: float | None, lanes: Lanes | None = None
) -> tuple[list[float], list[float], States]:
    losses, norms = [], []
    with tiny_engine(of, sizes, torch.bfloat16, lanes) as engine:
        for k in range(STEPS):
            result = engine.train_step(batch_at(RECORDS, 4, k), hyper_at(k + 1), max_norm)
            losses.append(result.loss)
            norms.append(result.grad_norm)
        losses.append(engine.evaluate([batch_at(RECORDS, 4, 0)]).loss)
        return losses, norms, states_of(engine)


def same(one: tuple[list[float], list[float], States], other: tuple[list[float], list[float], States]) -> bool:
    return one[:2] == other[:2] and differences(one[2], other[2]) == []


@pytest.mark.parametrize("max_norm", [None, BITES])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_bits(family: str, max_norm: float | None):
    of = tiny(family)
    expected = trained(of, SLIDING, max_norm)
    assert max_norm is None or min(expected[1]) > max_norm
    for place in PLACES:
        sizes = replace(SLIDING, resident_gradients=max_norm is not None, **place)
        assert same(trained(of, sizes, max_norm), expected), place


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_the_same_bits_with_one_and_many_micro_batches_and_16_bit_moments(micro_batches: int):
    of = tiny("qwen3")
    base = replace(
        SLIDING, micro_batch_size=4 // micro_batches, micro_batches=micro_batches, optimizer_state="bf16"
    )  # fmt: skip
    resident = replace(base, resident=2, resident_ends=True)
    assert same(trained(of, resident, None), trained(of, base, None))


@pytest.mark.parametrize("max_norm", [None, BITES])
@pytest.mark.parametrize("seed", range(6))
def test_the_same_bits_whenever_the_lanes_run(seed: int, max_norm: float | None):
    of = tiny("qwen3" if seed % 2 else "llama")
    sizes = replace(
        SLIDING, resident=1 + seed % 3, resident_ends=seed % 3 != 1, resident_gradients=max_norm is not None
    )  # fmt: skip
    lanes, _ = fuzzed_lanes(seed)
    assert same(trained(of, sizes, max_norm, lanes), trained(of, SLIDING, max_norm))


def test_what_is_resident_is_not_in_host_memory():
    of = tiny("llama")
    with tiny_engine(of, SLIDING, torch.bfloat16) as engine:
        usual = dict(engine.allocator.allocated_bytes)
    everything = replace(SLIDING, resident=BLOCKS, resident_ends=True)
    with tiny_engine(of, everything, torch.bfloat16) as engine:
        left = dict(engine.allocator.allocated_bytes)
    assert usual["optimizer moments"] > 0
    assert not any(left.get(name) for name in ("weights", "optimizer moments", "gradients", "head gradient"))


def test_a_gradient_that_is_not_finite_changes_no_weights_on_the_device(monkeypatch: pytest.MonkeyPatch):
    """Unclipped, the update follows before the host knows."""
    of = tiny("llama")
    sizes = replace(SLIDING, resident=BLOCKS, resident_ends=True)
    with tiny_engine(of, sizes, torch.bfloat16) as engine:
        before = states_of(engine)
        spoil(engine)
        with pytest.raises(Exception, match="not finite"):
            engine.train_step(batch_at(RECORDS, 4, 0), hyper_at(1))
            engine.drain()
        (block, *_) = (state for unit, state in engine.states.items() if unit == "model.layers.0")
        assert isinstance(block, DeviceState)
        assert all(map(same_bits, block.tensors().values(), before["model.layers.0"]))


def spoil(engine: Engine) -> None:
    """Make every gradient of the blocks NaN from the next step on."""
    real = engine._machinery.gradients.open

    def opened(layout):  # type: ignore[no-untyped-def]
        accumulator = real(layout)
        add = accumulator.add
        accumulator.add = lambda gradients: add([None if g is None else g * float("nan") for g in gradients])
        return accumulator

    engine._machinery.gradients.open = opened


def test_resident_needs_bf16():
    with pytest.raises(ConfigError, match="bfloat16"), tiny_engine(tiny("llama"), replace(SLIDING, resident=1)):
        pass


def test_clipping_needs_memory_for_the_gradients_on_the_device():
    sizes = replace(SLIDING, resident=1)
    with tiny_engine(tiny("llama"), sizes, torch.bfloat16) as e, pytest.raises(ValueError, match="on the device"):
        e.train_step(batch_at(RECORDS, 4, 0), hyper_at(1), 1.0)
