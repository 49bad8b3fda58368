"""Fresh weights: norms at one, biases at zero, matrices normal, the same for the same seed."""

from typing import Any

import torch
from tiny_models import tiny_config, tiny_model
from tiny_runs import SIZES, subject

from slideformer.engine.engine import Engine
from slideformer.engine.random_weights import random_weights


def draw(family: str, seed: int, **changes: Any) -> dict[str, torch.Tensor]:
    of = subject(tiny_model(family))
    with Engine(of.decoder, SIZES, torch.float32, threads=1) as engine:
        drawn = dict(random_weights(engine, tiny_config(family, **changes), seed))
        assert list(drawn) == list(engine.states)
        engine.load(drawn.items())
        return {name: value for _, group in engine.weights(torch.float32) for name, value in group.items()}


def test_every_parameter_starts_where_it_should():
    weights = draw("gpt2", seed=1)
    assert bool((weights["transformer.ln_f.weight"] == 1).all()) and not weights["transformer.ln_f.bias"].any()
    assert not weights["transformer.h.0.attn.c_attn.bias"].any()
    assert 0.018 < float(weights["transformer.h.1.mlp.c_fc.weight"].std()) < 0.022


def test_the_configurations_deviation_is_used():
    assert 0.18 < float(draw("llama", 1, initializer_range=0.2)["model.embed_tokens.weight"].std()) < 0.22


def test_a_seed_decides():
    one, same, other = draw("llama", 1), draw("llama", 1), draw("llama", 2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])
