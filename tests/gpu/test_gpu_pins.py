"""On a GPU: sizes that are pinned are those of the engine, and decide no bit; `bench` takes them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_tiny_model
from tiny_runs import batch_at, hyper_at, make_records

import slideformer
from slideformer.cli import main

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(240)]

BLOCKS, STEPS = 4, 3
RECORDS = make_records(16, lengths=(32, 64))
WIDE: dict[str, Any] = dict(
    hidden_size=256, intermediate_size=384, num_attention_heads=4, num_key_value_heads=2, head_dim=64
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), "qwen3", num_hidden_layers=BLOCKS, **WIDE)


def trained(model: Path, offload_dir: Path, pins: dict[str, Any], **given: Any) -> dict[str, torch.Tensor]:
    with slideformer.Engine.from_pretrained(
        model, batch_size=4, max_length=64, clipping=False, micro_batch_size=2, device="cuda", parity_check=False,
        offload_dir=offload_dir, pins=slideformer.Pins(**pins), **given,
    ) as engine:  # fmt: skip
        sizes = vars(engine.sizes)
        assert {name: sizes[name] for name in (*pins, *given)} == {**pins, **given}
        for k in range(STEPS):
            engine.train_step(batch_at(RECORDS, 4, k), hyper_at(k + 1))
        return {name: value.clone() for _, group in engine.weights(torch.float32) for name, value in group.items()}


def test_pins_are_the_engine_s_sizes_and_decide_no_bit(model: Path, tmp_path: Path):
    expected = trained(model, tmp_path, {"resident_ends": False}, resident=0, kept=0)
    for pins, given in [
        ({"resident_ends": True, "host_boundaries": 0}, {"resident": 2, "kept": 0}),
        ({"kept_outputs": 2, "host_boundaries": 1}, {"resident": 0, "kept": 1}),
        ({"host_boundaries": BLOCKS, "gradient_slots": 1}, {"resident": 1, "kept": 0}),
        ({"disk_blocks": 2}, {"resident": 1, "kept": 0}),
    ]:
        found = trained(model, tmp_path, pins, **given)
        assert all(torch.equal(found[name], value) for name, value in expected.items()), pins


def test_bench_takes_pins(tmp_path: Path):
    out, words = tmp_path / "out.json", ["--length", "64", "--steps", "1", "--warm-up", "1", "--sequences", "4"]
    pins = ["--resident", "1", "--resident-ends", "false", "--host-boundaries", "2", "--gradient-slots", "2"]
    assert main(["bench", "tiny", *words, *pins, "--gpu-budget", "4GiB", "--json", str(out)]) == 0
    (result,) = json.loads(out.read_text())["results"]
    sizes = result["plan"]
    assert (sizes["resident"], sizes["resident_ends"], sizes["host_boundaries"]) == (1, False, 2)
    assert sizes["gradient_slots"] == 2 and result["gpu_allocated_bytes"] > 0
