"""Two ways to need less host memory, together: 16-bit moments in records on disk are those in memory, bit for bit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model
from tiny_runs import SIZES, batch_at, hyper_at, make_records, same_bits, subject

from slideformer.engine.engine import Engine
from slideformer.plan.sizes import Sizes

RECORDS = make_records(12)


def trained(sizes: Sizes, offload_dir: Path | None, max_norm: float | None) -> dict[str, dict[str, torch.Tensor]]:
    of = subject(tiny_model("qwen3"))
    start = dict(of.model.named_parameters())
    with Engine(of.decoder, sizes, torch.float32, threads=1, offload_dir=offload_dir, seed=3) as engine:
        engine.load((u, {n: start[n].detach() for n in names}) for u, names in engine.parameter_groups().items())
        for k in range(4):
            engine.train_step(batch_at(RECORDS, 4, k), hyper_at(k + 1), max_norm)
        engine.drain()
        states = {}
        for unit, state in engine.states.items():
            with state.opened(change=False) as opened:
                states[unit] = {name: tensor.clone() for name, tensor in opened.tensors().items()}
        return states


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("blocks", [1, 3])
def test_the_same_bits_as_in_memory(tmp_path: Path, blocks: int, max_norm: float | None):
    sizes = replace(SIZES, gradient_slots=3, optimizer_state="bf16")
    in_memory = trained(sizes, None, max_norm)
    on_disk = trained(replace(sizes, disk_blocks=blocks), tmp_path, max_norm)
    assert in_memory["model.layers.0"]["exp_avg"].dtype == torch.bfloat16
    for unit, tensors in in_memory.items():
        assert all(same_bits(tensor, on_disk[unit][name]) for name, tensor in tensors.items()), unit
