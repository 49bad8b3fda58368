"""The first place that is not finite, in words."""

from functools import cache

import pytest
import torch
from tiny_models import tiny_model
from tiny_runs import Subject, batch_at, make_records, subject, tiny_engine

BATCH = batch_at(make_records(4), 4, 0)


@cache
def tiny(family: str) -> Subject:
    return subject(tiny_model(family))


@pytest.mark.parametrize(
    ("unit", "value", "place"),
    [
        ("model.layers.2", float("nan"), "the weights of model.layers.2 are not finite"),
        ("head", float("inf"), "the weights of head are not finite"),
        ("model.layers.1", 3e38, "the output of model.layers.1 is the first that is not finite (records 0, 1)"),
        ("head", 3e38, "every block's output is finite; the loss or the backward pass is not"),
    ],
)
def test_the_place_is_named(unit: str, value: float, place: str):
    with tiny_engine(tiny("llama")) as engine:
        with engine.states[unit].opened(change=True) as state:
            state.hi[:64] = value
        assert engine.find_non_finite(BATCH) == place


def test_an_embedding_that_overflows_is_named_with_the_records_that_read_it():
    with tiny_engine(tiny("gemma2")) as engine:  # which scales its rows
        token = int(BATCH.input_ids[2, 0])
        assert token not in BATCH.input_ids[:2]
        with engine.states["embedding"].opened(change=True) as state:
            state.hi.view(-1, 64)[token] = 3e38
        expected = "the embedding's output is the first that is not finite (records 2, 3)"
        assert engine.find_non_finite(BATCH) == expected


def test_a_healthy_engine():
    with tiny_engine(tiny("llama")) as engine:
        assert engine.find_non_finite(BATCH).startswith("every block's output is finite")
        assert torch.is_grad_enabled()
