"""A held-out loss is the model's own mean over tokens, however it is batched, and training does not notice it."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, tiny_model
from tiny_runs import (
    SIZES,
    Subject,
    batch_at,
    differences,
    hyper_at,
    make_records,
    mean_loss,
    states_of,
    subject,
    tiny_engine,
)

from slideformer.engine.evaluate import Evaluation
from slideformer.lanes.fuzzer import fuzzed_lanes

RECORDS = make_records(12)
HELD_OUT = make_records(11, seed=9)
DROPOUT = {"resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.2}


@cache
def tiny(family: str, **changes: Any) -> Subject:
    return subject(tiny_model(family, **changes))


def evaluated(of: Subject, batch_size: int, **sizes: int) -> Evaluation:
    with tiny_engine(of, replace(SIZES, **sizes)) as engine:
        return engine.evaluate([batch_at(HELD_OUT, batch_size, k) for k in range(-(-len(HELD_OUT) // batch_size))])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_a_stream_is_the_mean_over_all_its_tokens(family: str):
    whole = batch_at(HELD_OUT, len(HELD_OUT), 0)
    expected = float(mean_loss(tiny(family).model, whole).detach())
    for batch_size, micro_batch_size in ((4, 2), (3, 3), (1, 1)):
        found = evaluated(tiny(family), batch_size, micro_batch_size=micro_batch_size)
        assert found.loss == pytest.approx(expected, rel=2e-6) and found.tokens == whole.trained_tokens


@pytest.mark.parametrize("depth", [2, 3])
def test_the_window_decides_no_bit(depth: int):
    assert evaluated(tiny("llama"), 4, window_depth=depth) == evaluated(tiny("llama"), 4, window_depth=2)


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("sizes", [{}, {"host_boundaries": 2}, {"kept": 2}, {"window_depth": 3}])
def test_training_keeps_every_bit(family: str, max_norm: float | None, sizes: dict[str, int]):
    of = tiny(family, **DROPOUT) if family == "gpt2" else tiny(family)

    def train(evaluating: bool) -> Any:
        with tiny_engine(of, replace(SIZES, gradient_slots=3, **sizes)) as engine:
            for k in range(3):
                if evaluating:
                    engine.evaluate([batch_at(HELD_OUT, 4, j) for j in range(2)])
                engine.train_step(batch_at(RECORDS, 4, k), hyper_at(k + 1), max_norm)
            return states_of(engine)

    assert differences(train(True), train(False)) == []


def test_the_random_generator_is_left_alone():
    with tiny_engine(tiny("gpt2", **DROPOUT)) as engine:
        before = torch.get_rng_state()
        engine.evaluate([batch_at(HELD_OUT, 4, 0)])
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed", range(4))
def test_batches_overlap_without_a_race(seed: int):
    batches = [batch_at(HELD_OUT, 4, k) for k in range(3)]
    with tiny_engine(tiny("qwen3"), lanes=fuzzed_lanes(seed)[0]) as engine:
        found = engine.evaluate(batches)
    with tiny_engine(tiny("qwen3")) as engine:
        assert engine.evaluate(batches) == found
