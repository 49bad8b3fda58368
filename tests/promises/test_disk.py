"""Promise "the same bits on every tier": what is on disk, how fast it is and when it comes changes nothing."""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from disk_runs import BITES, BLOCKS, IN_MEMORY, RECORDS, Outcome, assert_same, deep
from tiny_models import FAMILIES, tiny_model
from tiny_runs import (
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
from slideformer.lanes.lanes import Lanes
from slideformer.memory.disk_state import units_on_disk
from slideformer.memory.record_ring import BUFFERS
from slideformer.models.architecture import Decoder
from slideformer.models.freezing import frozen_names


@cache
def partly_frozen() -> Subject:
    """Some parameters of each block, and all of two blocks."""
    model = tiny_model("llama", num_hidden_layers=BLOCKS)
    freeze: Callable[[Iterable[str]], frozenset[str]] = partial(
        frozen_names, frozen=[r"norm|down_proj", r"layers\.[03]\."]
    )
    return Subject(model, Decoder(model.config, torch.device("cpu"), freeze=freeze))


def run(
    of: Subject,
    offload_dir: Path,
    on_disk: int,
    max_norm: float | None,
    dtype: torch.dtype = torch.float32,
    lanes: Lanes | None = None,
    **sizes: int,
) -> Outcome:
    sizes_of_run = replace(IN_MEMORY, disk_blocks=on_disk, **sizes)
    with tiny_engine(of, sizes_of_run, dtype, lanes, offload_dir=offload_dir) as engine:
        results = [engine.train_step(batch_at(RECORDS, 4, k), hyper_at(k + 1), max_norm) for k in range(4)]
        engine.drain()
        return [result.grad_norm for result in results], states_of(engine)


@pytest.mark.parametrize("max_norm", [None, BITES])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_disk_changes_no_bit(family: str, max_norm: float | None, tmp_path: Path):
    in_memory = run(deep(family), tmp_path, 0, max_norm)
    for on_disk in (BLOCKS // 2, BLOCKS):
        assert_same(run(deep(family), tmp_path, on_disk, max_norm), in_memory)


@pytest.mark.parametrize("on_disk", [1, 4, BLOCKS])
def test_nor_in_bf16_where_the_remainders_are_on_disk_too(on_disk: int, tmp_path: Path):
    of = deep("qwen3")
    assert_same(
        run(of, tmp_path, on_disk, BITES, torch.bfloat16), run(of, tmp_path, 0, BITES, torch.bfloat16)
    )  # fmt: skip


CHOICES: dict[str, dict[str, Any]] = {
    "one micro-batch": {"micro_batch_size": 4, "micro_batches": 1},
    "four micro-batches": {"micro_batch_size": 1, "micro_batches": 4},
    "one gradient slot": {"gradient_slots": 1},
    "a deep window": {"window_depth": BLOCKS, "kept": 2},
    "two buffers": {"disk_buffers": 2},
    "one buffer": {"disk_buffers": 1},
}


@pytest.mark.parametrize("choice", CHOICES)
def test_nor_with_other_sizes(choice: str, tmp_path: Path):
    of = deep("llama")
    assert_same(
        run(of, tmp_path, BLOCKS, None, **CHOICES[choice]), run(of, tmp_path, 0, None, **CHOICES[choice])
    )  # fmt: skip


@pytest.mark.parametrize("max_norm", [None, BITES])
def test_nor_where_a_part_is_frozen(max_norm: float | None, tmp_path: Path):
    assert_same(run(partly_frozen(), tmp_path, BLOCKS, max_norm), run(partly_frozen(), tmp_path, 0, max_norm))


def test_missed_gradients_are_counted_on_disk_as_in_memory(tmp_path: Path):
    """With one short sequence a step, some experts are asked nothing."""
    of = subject(tiny_model("qwen3_moe", num_hidden_layers=BLOCKS, num_experts=16, num_experts_per_tok=1))
    records = make_records(8, lengths=(4, 5))
    outcomes = []
    for on_disk in (0, BLOCKS):
        with tiny_engine(of, replace(IN_MEMORY, disk_blocks=on_disk), offload_dir=tmp_path) as engine:
            for k in range(6):
                engine.train_step(batch_at(records, 1, k), hyper_at(k + 1))
            outcomes.append(
                (states_of(engine), {unit: dict(state.counts.missed) for unit, state in engine.states.items()})
            )
    assert differences(outcomes[0][0], outcomes[1][0]) == []
    assert outcomes[0][1] == outcomes[1][1]


@pytest.mark.parametrize("max_norm", [None, BITES])
def test_nor_at_adversarial_moments(max_norm: float | None, tmp_path: Path):
    in_memory = run(deep("qwen3"), tmp_path, 0, max_norm)
    for seed in range(8):
        lanes, _ = fuzzed_lanes(seed)
        outcome = run(deep("qwen3"), tmp_path, BLOCKS, max_norm, lanes=lanes, disk_buffers=4 - seed % 4)
        assert_same(outcome, in_memory)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("max_norm", [None, BITES])
def test_a_slow_disk_only_takes_longer(max_norm: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    in_memory = run(deep("llama"), tmp_path, 0, max_norm)

    def slowed(call: Callable[..., int]) -> Callable[..., int]:
        def slow(*args: Any) -> int:
            started = time.perf_counter()
            moved = call(*args)
            time.sleep(0.002 + 9 * (time.perf_counter() - started))
            return moved

        return slow

    for name in ("preadv", "pwritev"):
        monkeypatch.setattr(os, name, slowed(getattr(os, name)))
    assert_same(run(deep("llama"), tmp_path, BLOCKS, max_norm), in_memory)


def test_blocks_on_disk_are_spread_evenly_over_the_trained_ones():
    of = deep("llama")
    with tiny_engine(of) as engine:
        layouts = {unit: state.layout for unit, state in engine.states.items()}
    names = of.decoder.block_names
    assert units_on_disk(layouts, names, 0) == []
    assert units_on_disk(layouts, names, 2) == [names[2], names[5]]
    assert units_on_disk(layouts, names, 3) == [names[1], names[3], names[5]]
    assert units_on_disk(layouts, names, 99) == names
    frozen = partly_frozen()
    with tiny_engine(frozen) as engine:
        layouts = {unit: state.layout for unit, state in engine.states.items()}
    assert units_on_disk(layouts, names, 4) == [names[i] for i in (1, 2, 4, 5)]
    assert BUFFERS < BLOCKS
