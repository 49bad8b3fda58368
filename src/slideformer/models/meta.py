"""A model with its parameters on the meta device: its structure, none of its memory."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from slideformer.errors import UnsupportedModel


def build_on_meta(
    config: PreTrainedConfig, attention: str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model with its parameters on the meta device and its buffers real."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(
                config, attn_implementation=attention, trust_remote_code=trust_remote_code
            )
    finally:
        logging.set_verbosity(verbosity)
    model.tie_weights()  # putting parameters on meta made copies of shared ones
    return model


def refuse_untrainable(config: PreTrainedConfig) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(
            f"{config.model_type} is an encoder-decoder model", "use a decoder-only (causal) language model"
        )
    if getattr(config, "output_router_logits", False):
        raise UnsupportedModel(
            f"{config.model_type}: the router's auxiliary loss (output_router_logits) is not trained exactly yet",
            "set output_router_logits to false in the model's config.json",
        )
    if getattr(config, "layerdrop", 0):
        raise UnsupportedModel(f"{config.model_type}: layerdrop skips blocks at random", "set layerdrop to 0")


def draws_at_random(settings: Mapping[str, Any]) -> bool:
    """Whether a configuration has dropout or router noise anywhere."""
    return any(
        draws_at_random(value)
        if isinstance(value, Mapping)
        else isinstance(value, float) and value > 0 and ("drop" in key or "jitter" in key)
        for key, value in settings.items()
    )


def move_buffers(model: nn.Module, device: torch.device) -> None:
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
