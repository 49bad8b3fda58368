"""On a GPU in bf16: where the state of a layer is, in host memory or on the device, decides no bit."""

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
    states_of,
    subject,
    tiny_engine,
)

from slideformer.plan.sizes import Sizes

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]

BLOCKS, STEPS, BITES = 4, 4, 0.5
RECORDS = make_records(16, lengths=(32, 64))
WIDE = dict(hidden_size=256, intermediate_size=384, num_attention_heads=4, num_key_value_heads=2, head_dim=64)
SLIDING = replace(SIZES, max_length=64, head_chunk=64, gradient_slots=BLOCKS)
PLACES = [
    {"resident": 2},
    {"resident_ends": True},
    {"resident": BLOCKS, "resident_ends": True},
    {"resident": BLOCKS, "resident_ends": True, "kept": 2, "window_depth": 3},
]


def tiny(family: str) -> Subject:
    return subject(tiny_model(family, num_hidden_layers=BLOCKS, **WIDE), "cuda")


def trained(of: Subject, sizes: Sizes, max_norm: float | None) -> tuple[list[float], list[float], States]:
    losses, norms = [], []
    with tiny_engine(of, sizes, torch.bfloat16) as engine:
        for k in range(STEPS):
            result = engine.train_step(batch_at(RECORDS, 4, k), hyper_at(k + 1), max_norm)
            losses.append(result.loss)
            norms.append(result.grad_norm)
        losses.append(engine.evaluate([batch_at(RECORDS, 4, 0)]).loss)
        return losses, norms, states_of(engine)


@pytest.mark.parametrize("optimizer_state", ["fp32", "bf16"])
@pytest.mark.parametrize("max_norm", [None, BITES])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_the_same_bits(family: str, max_norm: float | None, optimizer_state: str):
    of, base = tiny(family), replace(SLIDING, optimizer_state=optimizer_state)
    expected = trained(of, base, max_norm)
    assert max_norm is None or min(expected[1]) > max_norm
    for place in PLACES:
        found = trained(of, replace(base, resident_gradients=max_norm is not None, **place), max_norm)
        assert found[:2] == expected[:2] and differences(found[2], expected[2]) == [], place
