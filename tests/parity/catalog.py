"""The types of transformers' causal language models, and a configuration of each."""

from typing import Any

from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

# What the defaults of a configuration leave out, without which the model itself cannot be built.
COMPLETED: dict[str, dict[str, Any]] = {
    "deepseek_v2": {
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "moe_intermediate_size": 64,
    },
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10_000.0}}},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
}


def all_types() -> list[str]:
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def config_of(model_type: str) -> Any:
    """A type's own defaults, completed where they are not enough; an encoder is set up as the decoder it can be."""
    config = CONFIG_MAPPING[model_type](**COMPLETED.get(model_type, {}))
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", True) is False:
        config.is_encoder_decoder, config.is_decoder = False, True
    return config
