"""How long the checks before the first step take for configurations of 100 billion parameters and more.

    python benchmarks/check_seconds.py

They train a tiny copy of the architecture, so the size of the model itself should not matter.
"""

import time
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from transformers import AutoConfig

from slideformer.engine.parity import check_parity
from slideformer.models.architecture import Decoder
from slideformer.models.tiny_model import check_causal

CONFIGS: dict[str, dict[str, Any]] = {
    "mistral": dict(
        hidden_size=12288, intermediate_size=28672, num_hidden_layers=88, num_attention_heads=96,
        num_key_value_heads=8, head_dim=128, vocab_size=32768,
    ),
    "qwen3_moe": dict(
        hidden_size=4096, num_hidden_layers=94, num_attention_heads=64, num_key_value_heads=4, head_dim=128,
        num_experts=128, num_experts_per_tok=8, moe_intermediate_size=1536, vocab_size=151936,
    ),
}  # fmt: skip


def main() -> None:
    for model_type, sizes in CONFIGS.items():
        config = AutoConfig.for_model(model_type, **sizes)
        decoder, taking_apart = timed(lambda c=config: Decoder(c, torch.device("cpu")))
        _, parity = timed(lambda c=config: check_parity(c))
        _, causal = timed(lambda c=config: check_causal(c))
        parameters = sum(map(prod, decoder.parameter_shapes.values())) / 1e9
        print(
            f"{model_type}, {parameters:.0f}B parameters: parity {parity:.2f} s, causality {causal:.2f} s, "
            f"taking the model apart {taking_apart:.2f} s"
        )


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    return work(), time.perf_counter() - started


if __name__ == "__main__":
    main()
