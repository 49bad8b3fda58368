"""A head in shards of the vocabulary: the same numbers as the whole, and the same bits whatever else is chosen."""

import weakref
from dataclasses import replace
from functools import cache, partial
from typing import Any

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

from slideformer.lanes.fuzzer import fuzzed_lanes
from slideformer.lanes.lanes import Lanes, inline_lanes
from slideformer.memory.head_shards import HeadShards, shard_rows
from slideformer.models.architecture import Decoder
from slideformer.models.freezing import frozen_names
from slideformer.plan.sizes import Sizes

RECORDS = make_records(12)
FAMILIES = ["llama", "qwen3", "gemma2", "gpt2"]  # gemma2 has a soft-cap behind its head
SHARDS = 3


@cache
def tiny(family: str, **changes: Any) -> Subject:
    return subject(tiny_model(family, **changes))


def trained(
    of: Subject, sizes: Sizes, dtype: torch.dtype = torch.float32, lanes: Lanes | None = None, norm: float | None = None
) -> tuple[list[float], States]:
    seen: list[float] = []
    with tiny_engine(of, sizes, dtype, lanes) as engine:
        for k in range(3):
            result = engine.train_step(batch_at(RECORDS, 4, k), hyper_at(k + 1), norm)
            seen += [result.loss, result.grad_norm]
        return seen, states_of(engine)


@pytest.mark.parametrize("shards", [2, 5])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_step_has_the_whole_heads_loss_norm_and_gradients(family: str, tied: bool, shards: int):
    """The first moment after one step is the gradient times 1 - beta1."""
    of = tiny(family, tie_word_embeddings=tied)
    found = []
    for count in (1, shards):
        with tiny_engine(of, replace(SIZES, head_shards=count)) as engine:
            result = engine.train_step(batch_at(RECORDS, 4, 0), hyper_at(1))
            found.append(((result.loss, result.grad_norm), states_of(engine)))
    (whole, expected), (ours, states) = found
    assert ours == pytest.approx(whole, rel=1e-6)
    for unit, (_, _, moment, _) in states.items():
        if moment.numel():
            largest = float(expected[unit][2].abs().max())
            torch.testing.assert_close(moment, expected[unit][2], rtol=0, atol=1e-6 * largest)


@pytest.mark.parametrize(
    "change",
    [{"window_depth": 3}, {"host_boundaries": 2}, {"gradient_slots": 3}, {"kept": 1}],
    ids=str,
)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_other_choices_change_no_bit(family: str, change: dict[str, int]):
    base = replace(SIZES, head_shards=SHARDS)
    one, other = trained(tiny(family), base), trained(tiny(family), replace(base, **change))
    assert one[0] == other[0] and differences(one[1], other[1]) == []


@pytest.mark.parametrize("norm", [None, 0.5])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_resident_head_gives_the_same_bits(family: str, norm: float | None):
    base = replace(SIZES, head_shards=SHARDS, gradient_slots=3)
    resident = replace(base, resident_ends=True, resident_gradients=norm is not None)
    one = trained(tiny(family), base, torch.bfloat16, norm=norm)
    other = trained(tiny(family), resident, torch.bfloat16, norm=norm)
    assert one[0] == other[0] and differences(one[1], other[1]) == []


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("seed", range(6))
def test_timing_changes_no_bit(seed: int, family: str):
    sizes = replace(SIZES, head_shards=SHARDS)
    lanes, _ = fuzzed_lanes(seed)
    one, other = trained(tiny(family), sizes), trained(tiny(family), sizes, lanes=lanes)
    assert one[0] == other[0] and differences(one[1], other[1]) == []


@pytest.mark.parametrize("patterns", [("lm_head",), ("norm",), ("lm_head", "embed")])
def test_frozen_parts_stay(patterns: tuple[str, ...]):
    model = tiny("llama").model
    freeze = partial(frozen_names, frozen=patterns)
    of = Subject(model, Decoder(model.config, torch.device("cpu"), freeze=freeze))
    whole, ours = trained(of, SIZES), trained(of, replace(SIZES, head_shards=SHARDS))
    assert ours[0] == pytest.approx(whole[0], rel=1e-5)


def test_a_loss_of_ones_own_has_the_whole_head():
    def loss(chunk: Any) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(chunk.logits.float(), chunk.targets, reduction="sum") / (
            chunk.trained_tokens
        )

    def of_shards(count: int) -> tuple[float, States]:
        with tiny_engine(tiny("llama"), replace(SIZES, head_shards=count)) as engine:
            seen = engine.train_step(batch_at(RECORDS, 4, 0), hyper_at(1), loss=loss).loss
            return seen, states_of(engine)

    one, other = of_shards(1), of_shards(SHARDS)
    assert one[0] == other[0] and differences(one[1], other[1]) == []


def test_no_more_than_two_shards_and_one_gradient_exist(monkeypatch: pytest.MonkeyPatch):
    """What `HeadShards.bytes_needed` counts, from one end of the loss to the other."""
    alive: dict[int, int] = {}
    most = 0
    lanes = inline_lanes(torch.device("cpu"))
    rows, width = shard_rows(128, SHARDS), 64

    def empty(shape: Any, dtype: torch.dtype) -> torch.Tensor:
        nonlocal most
        tensor = torch.empty(tuple(shape), dtype=dtype)
        if tensor.numel() in {rows * width, (128 - 2 * rows) * width}:
            alive[tensor.data_ptr()] = tensor.nbytes
            weakref.finalize(tensor, alive.pop, tensor.data_ptr())
            most = max(most, sum(alive.values()))
        return tensor

    monkeypatch.setattr(Lanes, "empty", lambda self, shape, dtype: empty(shape, dtype))
    of = tiny("llama")
    assert of.decoder.head_shape == (128, width)
    trained(of, replace(SIZES, head_shards=SHARDS), lanes=lanes)
    assert 0 < most <= HeadShards.bytes_needed((128, width), SHARDS, torch.float32)
