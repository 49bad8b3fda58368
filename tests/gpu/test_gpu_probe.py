"""The probe on a GPU: a link that copies, in both directions, and leaves something to the CPU."""

from pathlib import Path

import pytest

from slideformer.engine.block_calls import block_call_seconds
from slideformer.plan.probe import probe


@pytest.mark.gpu
def test_a_gpu_has_every_rate(tmp_path: Path):
    rates = probe(tmp_path, block_call_seconds)
    link, under = rates.link, rates.host.adamw_parameters_under_copies
    assert link and under and rates.has_gpu
    assert 1e9 < link.h2d_together_bytes <= link.h2d_bytes * 1.1 and link.d2h_bytes > 1e9
    assert under <= rates.host.adamw_parameters * 1.1
    assert rates.compute.matmul_flops["bf16"] > rates.compute.matmul_flops["fp32"] > 1e12
    assert rates.memory.device_total_bytes
