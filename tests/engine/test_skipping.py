"""A step whose gradient is not finite, left out: every bit is then as if its batch had not been there."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_models import tiny_model
from tiny_runs import (
    HYPER,
    SIZES,
    States,
    batch_at,
    differences,
    make_records,
    same_bits,
    states_of,
    subject,
    tiny_engine,
)

from slideformer.engine.custom_loss import TokenChunk
from slideformer.errors import NonFinite

RECORDS = make_records(24)
CLIPPED = replace(SIZES, gradient_slots=3)
FAMILIES = ["qwen3", "mistral", "qwen3_moe"]  # tied, untied, and parameters that some gradients do not reach


def mean_loss(chunk: TokenChunk) -> torch.Tensor:
    losses = torch.nn.functional.cross_entropy(chunk.logits.float(), chunk.targets, reduction="sum")
    return losses / chunk.trained_tokens


def broken_loss(chunk: TokenChunk) -> torch.Tensor:
    return mean_loss(chunk) * math.nan


def run(family: str, batches: list[int], broken: int | None = None) -> States:
    """The states after steps over some batches, of which one's loss may be broken."""
    with tiny_engine(subject(tiny_model(family)), CLIPPED) as engine:
        for step, number in enumerate(batches, start=1):
            loss, hyper = broken_loss if number == broken else mean_loss, replace(HYPER, step=step)
            result = engine.train_step(batch_at(RECORDS, 4, number), hyper, 1.0, loss=loss, skip_non_finite=True)
            assert bool(result.non_finite) == (number == broken) == math.isnan(result.grad_norm)
        return states_of(engine)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("broken", [0, 2, 4])
def test_a_skipped_step_is_as_if_its_batch_had_been_left_out(family: str, broken: int):
    kept = [number for number in range(5) if number != broken]
    assert differences(run(family, list(range(5)), broken), run(family, kept)) == []


def test_the_layers_are_named_and_nothing_changes():
    with tiny_engine(subject(tiny_model("mistral")), CLIPPED) as engine:
        before = states_of(engine)
        result = engine.train_step(
            batch_at(RECORDS, 4, 0), replace(HYPER, step=1), 1.0, loss=broken_loss, skip_non_finite=True
        )
        assert set(result.non_finite) == {"head", "shell", "embedding", *(f"model.layers.{i}" for i in range(3))}
        assert differences(states_of(engine), before) == []


def test_a_skipped_step_is_in_the_checkpoint():
    with tiny_engine(subject(tiny_model("qwen3")), CLIPPED) as engine:
        engine.train_step(batch_at(RECORDS, 4, 0), replace(HYPER, step=1), 1.0, loss=broken_loss, skip_non_finite=True)
        assert all(set(state.missed.values()) == {1} for state in engine.unit_states().values())


def test_without_it_the_step_fails():
    with tiny_engine(subject(tiny_model("qwen3")), CLIPPED) as engine:
        result = engine.train_step(batch_at(RECORDS, 4, 0), replace(HYPER, step=1), 1.0, loss=broken_loss)
        with pytest.raises(NonFinite, match="step 1: the gradient of"):
            _ = result.grad_norm


def test_it_needs_clipping():
    with tiny_engine(subject(tiny_model("qwen3")), CLIPPED) as engine:
        before = states_of(engine)
        with pytest.raises(ValueError, match="skip_non_finite needs max_norm"):
            engine.train_step(batch_at(RECORDS, 4, 0), HYPER, skip_non_finite=True)
        assert all(all(map(same_bits, a, before[unit])) for unit, a in states_of(engine).items())
