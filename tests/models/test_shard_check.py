"""A head passes in shards only where the logits of a shard are a slice of the logits."""

from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, tiny_model

from slideformer.models import architecture
from slideformer.models.shard_check import head_shards_exactly
from slideformer.models.tail import Tail


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_with_biases_scales_and_soft_caps_can_be_sharded(family: str):
    assert head_shards_exactly(tiny_model(family).config)


def spoiled(monkeypatch: pytest.MonkeyPatch, change: Any) -> bool:
    """The answer for a model that does `change` to its logits."""

    class Spoiled(Tail):
        def _run(self, hidden: torch.Tensor, shell: Any) -> Any:
            output = super()._run(hidden, shell)
            output.logits = change(output.logits)
            return output

    monkeypatch.setattr(architecture, "Tail", Spoiled)
    return head_shards_exactly(tiny_model("llama").config)


def test_a_normalised_vocabulary_cannot(monkeypatch: pytest.MonkeyPatch):
    assert spoiled(monkeypatch, lambda logits: 2 * logits)
    assert not spoiled(monkeypatch, lambda logits: logits.log_softmax(-1))


def test_entries_that_are_set_apart_by_their_number_cannot(monkeypatch: pytest.MonkeyPatch):
    assert not spoiled(monkeypatch, lambda logits: logits.index_fill(-1, torch.tensor([1]), -1e9))
    last = torch.tensor([tiny_model("llama").config.vocab_size - 1])
    assert not spoiled(monkeypatch, lambda logits: logits.index_fill(-1, last, -1e9))
