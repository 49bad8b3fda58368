"""What generation is expected to need is what its cache then holds."""

from functools import cache
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, tiny_model
from tiny_runs import Subject, subject

from slideformer.engine.inference import InferenceEngine
from slideformer.engine.measure_inference import measure_inference, measure_keys_and_values
from slideformer.engine.sampling import Decoding
from slideformer.engine.sequences import CachedGroup
from slideformer.models.caching import cached_bytes
from slideformer.plan.sizes import InferenceSizes


@cache
def tiny(family: str) -> Subject:
    return subject(tiny_model(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_and_values_are_as_large_as_measured(family: str, monkeypatch: pytest.MonkeyPatch):
    of = tiny(family)
    sizes = measure_keys_and_values(of.decoder, torch.float32)
    assert sizes is not None
    groups: list[Any] = []
    monkeypatch.setattr("slideformer.engine.generate.CachedGroup", lambda p: groups.append(CachedGroup(p)) or groups[0])
    with InferenceEngine(of.decoder, InferenceSizes(2, 2, 1, 64), torch.float32) as engine:
        engine.generate([[5] * 60, [6] * 50], Decoding(11))  # the last token is chosen and not entered
    held = sum(cached_bytes(groups[0]._cache, i) for i in range(of.decoder.depth))
    assert held == pytest.approx(2 * (sizes.fixed_bytes + 70 * sizes.token_bytes), rel=0.03)
    assert held <= sizes.bytes_needed(2, 71)


def test_a_forward_is_estimated_to_need_something_that_grows():
    short, long = (measure_inference(tiny("llama").decoder, length, torch.float32) for length in (64, 128))
    assert 0 < short.block_bytes < long.block_bytes == 2 * short.block_bytes and short.cache == long.cache
