"""What calling operators costs is what steps over few tokens take, those of more blocks more."""

import time

import pytest
import torch

from slideformer.engine import block_calls
from slideformer.engine.block_calls import block_call_seconds
from slideformer.models.architecture import Decoder

CPU = torch.device("cpu")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(block_calls, "WARM_UP", 1)
    monkeypatch.setattr(block_calls, "ROUNDS", 3)


@pytest.mark.usefixtures("quick")
def test_a_call_takes_time():
    assert 1e-7 < block_call_seconds(CPU) < 1e-2


@pytest.mark.parametrize("seconds", [{4: 10.0, 12: 18.0}, {4: 13.0, 12: 12.0}])  # beside other work deeper is shorter
def test_it_is_the_time_of_a_block_over_its_operators(monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float]):
    monkeypatch.setattr(block_calls, "step_seconds", lambda depth, device: seconds[depth])
    assert 150 < 1 / block_call_seconds(CPU) < 600  # forward and backward of a Qwen3 block that takes a second


@pytest.mark.usefixtures("quick")
def test_what_a_block_waits_for_counts(monkeypatch: pytest.MonkeyPatch):
    block = Decoder.block

    def slow(self: Decoder, *given: object) -> torch.Tensor:
        time.sleep(0.02)
        return block(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Decoder, "block", slow)
    assert block_call_seconds(CPU) > 0.02 / 600
