"""Promise "the same bits on every tier", with weights on disk as well: read ahead, and always of the last update."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from disk_runs import BITES, BLOCKS, IN_MEMORY, RECORDS, Outcome, assert_same, deep
from tiny_models import FAMILIES, tiny_model
from tiny_runs import (
    Subject,
    batch_at,
    hyper_at,
    states_of,
    tiny_engine,
)

from slideformer.engine.sampling import Decoding
from slideformer.lanes.fuzzer import fuzzed_lanes
from slideformer.lanes.lanes import Lanes
from slideformer.models.architecture import Decoder
from slideformer.models.freezing import frozen_names


@cache
def partly_frozen() -> Subject:
    """The first blocks, and so nothing of them takes part in backward; and one in between."""
    model = tiny_model("llama", num_hidden_layers=BLOCKS)
    frozen = [r"layers\.[013]\.", "embed"]
    return Subject(model, Decoder(model.config, torch.device("cpu"), freeze=lambda names: frozen_names(names, frozen)))


def run(
    of: Subject,
    offload_dir: Path,
    with_weights: int,
    max_norm: float | None = None,
    dtype: torch.dtype = torch.float32,
    lanes: Lanes | None = None,
    **sizes: Any,
) -> Outcome:
    """Steps, an evaluation and answers between them: losses, norms and tokens, and the states at the end."""
    disk = {"disk_blocks": BLOCKS, "disk_weight_blocks": with_weights} if with_weights else {}
    with tiny_engine(of, replace(IN_MEMORY, **disk, **sizes), dtype, lanes, offload_dir=offload_dir) as engine:
        seen: list[float] = []
        for k in range(4):
            result = engine.train_step(batch_at(RECORDS, 4, k), hyper_at(k + 1), max_norm)
            if k == 1:
                seen.append(engine.evaluate([batch_at(RECORDS, 4, j) for j in range(3)]).loss)
                answers = engine.generate([[3, 4, 5], [6], [7, 8]], Decoding(3))
                seen += [token for answer in answers for token in answer]
            if k % 2:  # otherwise nothing but freshness holds the next step up
                seen += [result.loss, result.grad_norm]
        return seen, states_of(engine)


@pytest.mark.parametrize("max_norm", [None, BITES])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_on_disk_change_no_bit(family: str, max_norm: float | None, tmp_path: Path):
    in_memory = run(deep(family), tmp_path, 0, max_norm)
    for with_weights in (BLOCKS // 2, BLOCKS):
        assert_same(run(deep(family), tmp_path, with_weights, max_norm), in_memory)


@pytest.mark.parametrize("state", ["fp32", "bf16"])
def test_nor_in_bf16(state: str, tmp_path: Path):
    of, same = deep("qwen3"), {"dtype": torch.bfloat16, "max_norm": BITES, "optimizer_state": state}
    in_memory = run(of, tmp_path, 0, **same)
    for with_weights in (1, 4, BLOCKS):
        assert_same(run(of, tmp_path, with_weights, **same), in_memory)


CHOICES: dict[str, dict[str, Any]] = {
    "one micro-batch": {"micro_batch_size": 4, "micro_batches": 1},
    "one gradient slot": {"gradient_slots": 1},
    "a window of one": {"window_depth": 1},
    "a window of three, some kept": {"window_depth": 3, "kept": 1, "kept_outputs": 2},
    "a window of all": {"window_depth": BLOCKS},
    "two buffers": {"disk_buffers": 2},
    "one buffer": {"disk_buffers": 1},
    "one buffer, a window of three": {"disk_buffers": 1, "window_depth": 3},
    "boundaries in host memory": {"host_boundaries": 4},
}


@pytest.mark.parametrize("choice", CHOICES)
def test_nor_with_other_sizes(choice: str, tmp_path: Path):
    of, sizes = deep("llama"), CHOICES[choice]
    assert_same(run(of, tmp_path, BLOCKS, **sizes), run(of, tmp_path, 0, **sizes))


def test_nor_beside_resident_blocks(tmp_path: Path):
    of = deep("llama")
    sizes: dict[str, Any] = {"dtype": torch.bfloat16, "resident": 2, "resident_ends": True}
    assert_same(run(of, tmp_path, BLOCKS, **sizes), run(of, tmp_path, 0, **sizes))


@pytest.mark.parametrize("max_norm", [None, BITES])
def test_nor_where_blocks_are_frozen(max_norm: float | None, tmp_path: Path):
    of = partly_frozen()
    assert_same(run(of, tmp_path, BLOCKS, max_norm), run(of, tmp_path, 0, max_norm))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("max_norm", [None, BITES])
def test_nor_at_adversarial_moments(max_norm: float | None, tmp_path: Path):
    in_memory = run(deep("qwen3"), tmp_path, 0, max_norm)
    for seed in range(8):
        lanes, _ = fuzzed_lanes(seed)
        sizes: dict[str, Any] = {"disk_buffers": 4 - seed % 4, "window_depth": 1 + seed % 3}
        assert_same(run(deep("qwen3"), tmp_path, BLOCKS, max_norm, lanes=lanes, **sizes), in_memory)
