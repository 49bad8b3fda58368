"""A model of a tiny configuration, and what it tells of its architecture: whether it is causal."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from slideformer.errors import UnsupportedModel
from slideformer.models.tiny import shrink

TOKENS = 24  # of the sequence whose last token is changed
MOST_PARAMETERS = 50_000_000


def check_causal(config: Any, trust_remote_code: bool = False) -> None:
    """Raise UnsupportedModel unless a tiny copy is causal; a small part of `check_parity`, for runs without it."""
    with torch.random.fork_rng(devices=[]):
        tiny = shrink(config)
        refuse_two_way(build_tiny(tiny, trust_remote_code), tiny.get_text_config().vocab_size)


def build_tiny(tiny: Any, trust_remote_code: bool = False) -> Any:
    """The model of a tiny configuration, with random weights that leave nothing symmetric.

    Raises:
        UnsupportedModel: it is not tiny, or cannot be built.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            with torch.device("meta"):
                model: Any = AutoModelForCausalLM.from_config(tiny, trust_remote_code=trust_remote_code)
            count = sum(p.numel() for p in model.parameters())
            if count > MOST_PARAMETERS:
                raise UnsupportedModel(
                    f"the smallest {type(model).__name__} that could be made has {count:,} parameters"
                )
            model = AutoModelForCausalLM.from_config(
                tiny, dtype=torch.float32, trust_remote_code=trust_remote_code
            ).train()
        except UnsupportedModel:
            raise
        except Exception as error:  # transformers checks configurations in many ways
            raise UnsupportedModel(f"no tiny {tiny.model_type} can be built: {error}") from error
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def refuse_two_way(model: nn.Module, vocabulary: int) -> None:
    """Raise unless no token sees a later one: padding on the right, and a causal loss, rely on it.

    Raises:
        UnsupportedModel: a token's logits change with the one behind it.
    """
    ids = torch.randint(1, vocabulary, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, -1] = ids[0, -1] % (vocabulary - 1) + 1
    was_training = model.training
    model.eval()
    with torch.no_grad():
        one, two = (model(input_ids=given, use_cache=False).logits[0, :-1] for given in (ids, other))
    model.train(was_training)
    if not torch.allclose(one, two, rtol=1e-4, atol=1e-4 * float(one.abs().max())):
        raise UnsupportedModel(
            f"{type(model).__name__} is not causal: a token sees those behind it",
            "choose a decoder such as Llama or Qwen3; an encoder may have a setting, is_decoder",
        )


def without_dropout(config: Any) -> Any:
    """The configuration without anything drawn at random, however deep."""
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            without_dropout(value)
        elif isinstance(value, float) and ("drop" in name or "jitter" in name):
            setattr(config, name, 0.0)
    return config
