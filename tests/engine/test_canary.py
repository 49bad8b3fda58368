"""Models in which documents of a row would see each other are refused, with the place."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, tiny_config, tiny_model
from transformers import AutoConfig

from slideformer.engine.canary import refuse_leaks
from slideformer.engine.parity import check_parity
from slideformer.errors import UnsupportedModel
from slideformer.models import architecture
from slideformer.models.architecture import Decoder

SMALL: dict[str, Any] = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_attention_heads=4)
# Family -> (settings, the mixer that is named); each carries a state, a convolution or attention of its own.
LEAKING: dict[str, tuple[dict[str, Any], str]] = {
    "lfm2": (dict(num_hidden_layers=3, layer_types=["full_attention", "conv", "conv"]), "Lfm2ShortConv"),
    "recurrent_gemma": (dict(num_hidden_layers=3), "RecurrentGemmaRecurrentBlock"),
    "jamba": (dict(num_hidden_layers=8, num_key_value_heads=2), "JambaMambaMixer"),
    "gpt_neo": (dict(num_layers=2, attention_types=[[["global", "local"], 1]], num_heads=4), "GPTNeoAttention"),
}


@pytest.mark.parametrize("family", LEAKING)
def test_what_carries_something_over_is_named(family: str):
    settings, mixer = LEAKING[family]
    config = AutoConfig.for_model(family, **SMALL | settings)
    with pytest.raises(UnsupportedModel, match=f"packing: .*{mixer}.* carries something from one document") as caught:
        check_parity(config, packed=True)
    assert "packing: false" in caught.value.hint


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_through_the_interface_carries_nothing(family: str):
    model = tiny_model(family)
    decoder = Decoder(model.config, torch.device("cpu"), packed=True)
    refuse_leaks(decoder, dict(model.named_parameters()))


def test_a_block_that_is_not_told_of_documents_is_noticed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(architecture, "attending", lambda documents: nullcontext())
    with pytest.raises(UnsupportedModel, match="LlamaDecoderLayer .* carries something"):
        check_parity(tiny_config("llama"), packed=True)


def test_a_block_that_fails_is_named(monkeypatch: pytest.MonkeyPatch):
    def fails(*_: Any, **__: Any) -> None:
        raise TypeError("no mask")

    monkeypatch.setattr(Decoder, "block", fails)
    with pytest.raises(UnsupportedModel, match=r"LlamaDecoderLayer \(.*\) fails on packed rows: no mask"):
        check_parity(tiny_config("llama"), packed=True)
