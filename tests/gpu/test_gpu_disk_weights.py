"""On a GPU in bf16: weights and boundary activations that come from the disk are those of host memory, bit for bit."""

from dataclasses import replace
from pathlib import Path
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

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]

BLOCKS, STEPS, BITES = 6, 4, 0.5
RECORDS = make_records(16, lengths=(32, 64))
WIDE = dict(hidden_size=256, intermediate_size=384, num_attention_heads=4, num_key_value_heads=2, head_dim=64)
IN_MEMORY = replace(SIZES, max_length=64, head_chunk=64, gradient_slots=BLOCKS)
ALL = {"disk_blocks": BLOCKS, "disk_weight_blocks": BLOCKS, "host_boundaries": BLOCKS, "disk_boundaries": BLOCKS}
PLACES: dict[str, dict[str, Any]] = {
    "states": {"disk_blocks": BLOCKS},
    "weights of half": {"disk_blocks": BLOCKS, "disk_weight_blocks": 3},
    "weights of all, a deep window": {"disk_blocks": BLOCKS, "disk_weight_blocks": BLOCKS, "window_depth": 4},
    "boundaries": {"host_boundaries": 5, "disk_boundaries": 4},
    "all": ALL,
    "all, one buffer": {**ALL, "disk_buffers": 1},
    "all beside resident blocks": {**ALL, "resident": 2, "resident_ends": True},
}


def trained(of: Subject, directory: Path, max_norm: float | None, **sizes: Any) -> tuple[list[float], States]:
    chosen = replace(IN_MEMORY, resident_gradients=bool(sizes.get("resident")) and max_norm is not None, **sizes)
    with tiny_engine(of, chosen, torch.bfloat16, offload_dir=directory) as engine:
        results = [engine.train_step(batch_at(RECORDS, 4, k), hyper_at(k + 1), max_norm) for k in range(STEPS)]
        seen = [value for result in results for value in (result.loss, result.grad_norm)]
        seen.append(engine.evaluate([batch_at(RECORDS, 4, k) for k in range(3)]).loss)
        return seen, states_of(engine)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("max_norm", [None, BITES])
def test_the_same_bits(max_norm: float | None, place: str, tmp_path: Path):
    of = subject(tiny_model("qwen3", num_hidden_layers=BLOCKS, **WIDE), "cuda")
    expected = trained(of, tmp_path, max_norm)
    found = trained(of, tmp_path, max_norm, **PLACES[place])
    assert found[0] == expected[0] and differences(found[1], expected[1]) == []
    assert list(tmp_path.iterdir()) == []


def test_what_passes_between_disk_and_gpu_is_pinned(tmp_path: Path):
    of = subject(tiny_model("llama", num_hidden_layers=BLOCKS, **WIDE), "cuda")
    with tiny_engine(of, replace(IN_MEMORY, **ALL), torch.bfloat16, offload_dir=tmp_path) as engine:
        weights = engine._machinery.window._ahead._staging  # type: ignore[union-attr]
        boundaries = engine._machinery.saved._disk._staging  # type: ignore[union-attr]
        assert weights is not None
        for staged in (*weights._buffers, *boundaries._buffers):
            assert staged.memory.is_pinned()
