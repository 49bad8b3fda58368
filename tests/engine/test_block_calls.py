"""What calling operators costs is that of a block: its passes over few tokens take about as long as their calls."""

import time

import pytest
import torch

from slideformer.engine import block_calls
from slideformer.engine.block_calls import block_call_seconds
from slideformer.models.architecture import Decoder


def test_a_call_takes_time():
    assert 1e-7 < block_call_seconds(torch.device("cpu")) < 1e-2


def test_it_is_the_time_of_a_pass_over_its_operators(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(block_calls, "_pass_seconds", lambda decoder, dtype: 1.0)
    calls = 1 / block_call_seconds(torch.device("cpu"))
    assert 150 < calls < 600  # forward and backward of a Qwen3 block


def test_waiting_in_a_pass_counts(monkeypatch: pytest.MonkeyPatch):
    block = Decoder.block

    def slow(self: Decoder, *given: object) -> torch.Tensor:
        time.sleep(0.02)
        return block(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(block_calls, "ROUNDS", 2)
    monkeypatch.setattr(Decoder, "block", slow)
    assert block_call_seconds(torch.device("cpu")) > 0.02 / 600
