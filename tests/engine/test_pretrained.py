"""`Engine.from_pretrained` plans by seconds where the GPU was probed, and only there."""

import pytest
import torch
from made_up_machines import machine
from tiny_models import tiny_config

from slideformer.engine import pretrained
from slideformer.plan.plan import Workload
from slideformer.plan.rates import MachineRates


@pytest.mark.parametrize(
    ("device", "rates", "known"),
    [("cuda", machine(), True), ("cuda", machine(gpu=False), False), ("cuda", None, False), ("cpu", machine(), False)],
)
def test_the_pace_is_that_of_a_probed_gpu(
    monkeypatch: pytest.MonkeyPatch, device: str, rates: MachineRates | None, known: bool
):
    monkeypatch.setattr(pretrained, "cached_rates", lambda: rates)
    config = tiny_config("llama")
    pace = pretrained.pace_of_model(
        torch.device(device), config, Workload(6, 32, True), torch.bfloat16, True, False
    )  # fmt: skip
    assert (pace is not None) == known
    if pace is not None:
        assert (
            pace.clipping
            and pace.tokens_of(2).computed == 6 * 32
            and len(pace.operations.blocks) == config.num_hidden_layers
        )
