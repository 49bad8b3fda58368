"""The first layers of a configuration are those of the whole one."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from slideformer.errors import ConfigError
from slideformer.models.layer_lists import first_layers

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}


def test_lists_of_layers_and_numbers_of_layers_are_cut():
    config = AutoConfig.for_model("qwen3_moe", num_hidden_layers=12, mlp_only_layers=[1, 2, 7], max_window_layers=12)
    config.layer_types = ["full_attention", "sliding_attention"] * 6
    cut = first_layers(config, 3)
    assert cut.num_hidden_layers == 3 and cut.mlp_only_layers == [1, 2] and cut.max_window_layers == 3
    assert cut.layer_types == ["full_attention", "sliding_attention", "full_attention"]
    assert config.num_hidden_layers == 12 and len(config.layer_types) == 12


def test_the_layers_of_a_text_model_within_a_larger_one():
    config = AutoConfig.for_model("gemma3", text_config={**SMALL, "num_hidden_layers": 8, "head_dim": 8})
    kinds = config.get_text_config().layer_types
    assert len(set(kinds)) == 2
    text = first_layers(config, 7).get_text_config()
    assert text.num_hidden_layers == 7 and text.layer_types == kinds[:7]
    assert len(config.get_text_config().layer_types) == 8


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_a_cut_model_has_the_weights_of_the_first_layers(family: str):
    config = AutoConfig.for_model(family, **SMALL, num_hidden_layers=4)
    with torch.device("meta"):
        whole, cut = (AutoModelForCausalLM.from_config(c).state_dict() for c in (config, first_layers(config, 2)))
    beyond = {name for name in whole if any(f".{i}." in name for i in (2, 3))}
    assert beyond and cut.keys() == whole.keys() - beyond
    assert all(cut[name].shape == whole[name].shape for name in cut)


@pytest.mark.parametrize("count", [0, 5])
def test_there_must_be_so_many(count: int):
    config = AutoConfig.for_model("llama", **SMALL, num_hidden_layers=4)
    with pytest.raises(ConfigError, match=f"blocks: {count}, but the model has 4"):
        first_layers(config, count)


def test_a_configuration_that_does_not_say_how_many():
    with pytest.raises(ConfigError, match="no num_hidden_layers"):
        first_layers(PretrainedConfig(), 1)


def test_overrides_of_single_layers_are_refused():
    config = AutoConfig.for_model(
        "llama", **SMALL, num_hidden_layers=4, per_layer_config={1: {"intermediate_size": 32}}
    )
    with pytest.raises(ConfigError, match="overrides for single layers"):
        first_layers(config, 2)
