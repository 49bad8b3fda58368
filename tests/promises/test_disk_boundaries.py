"""Promise "the same bits on every tier", with boundary activations on disk."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from disk_runs import BITES, BLOCKS, IN_MEMORY, RECORDS, Outcome, assert_same, deep
from tiny_models import FAMILIES
from tiny_runs import (
    Subject,
    batch_at,
    hyper_at,
    states_of,
    tiny_engine,
)

from slideformer.lanes.fuzzer import fuzzed_lanes
from slideformer.lanes.lanes import Lanes


def run(
    of: Subject,
    offload_dir: Path,
    on_disk: int,
    max_norm: float | None = None,
    dtype: torch.dtype = torch.float32,
    lanes: Lanes | None = None,
    **sizes: Any,
) -> Outcome:
    """Steps of different lengths, an evaluation between them: losses and norms, and the states at the end."""
    boundaries = {"host_boundaries": max(on_disk, sizes.pop("host_boundaries", 0)), "disk_boundaries": on_disk}
    with tiny_engine(of, replace(IN_MEMORY, **boundaries, **sizes), dtype, lanes, offload_dir=offload_dir) as engine:
        seen: list[float] = []
        for k in range(4):
            result = engine.train_step(batch_at(RECORDS, 4, k), hyper_at(k + 1), max_norm)
            seen += [result.loss, result.grad_norm]
            if k == 1:
                seen.append(engine.evaluate([batch_at(RECORDS, 4, j) for j in range(2)]).loss)
        return seen, states_of(engine)


@pytest.mark.parametrize("max_norm", [None, BITES])
@pytest.mark.parametrize("family", FAMILIES)
def test_boundaries_on_disk_change_no_bit(family: str, max_norm: float | None, tmp_path: Path):
    on_device = run(deep(family), tmp_path, 0, max_norm)
    for on_disk in (2, BLOCKS):
        assert_same(run(deep(family), tmp_path, on_disk, max_norm), on_device)


CHOICES: dict[str, dict[str, Any]] = {
    "one micro-batch": {"micro_batch_size": 4, "micro_batches": 1},
    "four micro-batches": {"micro_batch_size": 1, "micro_batches": 4},
    "some in host memory": {"on_disk": 2, "host_boundaries": 4},
    "some kept": {"kept": 1, "kept_outputs": 2},
    "two buffers": {"disk_buffers": 2},
    "one buffer": {"disk_buffers": 1},
    "more buffers than boundaries": {"on_disk": 1, "disk_buffers": 9},
    "states and weights on disk, too": {"disk_blocks": BLOCKS, "disk_weight_blocks": BLOCKS},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("choice", CHOICES)
def test_nor_with_other_sizes(choice: str, dtype: torch.dtype, tmp_path: Path):
    sizes: dict[str, Any] = {"on_disk": BLOCKS, **CHOICES[choice]}
    elsewhere = {"on_disk": 0, "host_boundaries": 0, "disk_blocks": 0, "disk_weight_blocks": 0}
    in_memory = {**sizes, **{name: value for name, value in elsewhere.items() if name in sizes}}
    assert_same(
        run(deep("llama"), tmp_path, dtype=dtype, **sizes), run(deep("llama"), tmp_path, dtype=dtype, **in_memory)
    )


@pytest.mark.timeout(120)
@pytest.mark.parametrize("max_norm", [None, BITES])
def test_nor_at_adversarial_moments(max_norm: float | None, tmp_path: Path):
    of, on_device = deep("qwen3"), run(deep("qwen3"), tmp_path, 0, max_norm)
    for seed in range(8):
        lanes, _ = fuzzed_lanes(seed)
        disk = {"disk_blocks": BLOCKS, "disk_weight_blocks": BLOCKS} if seed % 2 else {}
        sizes: dict[str, Any] = {"disk_buffers": 4 - seed % 4, "host_boundaries": 4, **disk}
        assert_same(run(of, tmp_path, 2 + seed % 3, max_norm, lanes=lanes, **sizes), on_device)
