"""Fresh random weights, for benchmarks and training from scratch."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from slideformer.engine.engine import Engine
from slideformer.engine.inference import InferenceEngine

DEFAULT_STANDARD_DEVIATION = 0.02


def random_weights(engine: Engine | InferenceEngine, config: Any, seed: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(unit, name -> values): vectors named as norms are 1, other vectors 0, matrices normal(0, initializer_range).

    Drawn on the engine's device, so that billions take seconds.
    """
    device = engine.lanes.device
    generator = torch.Generator(device).manual_seed(seed)
    deviation = getattr(config, "initializer_range", None) or DEFAULT_STANDARD_DEVIATION
    shapes = engine.decoder.parameter_shapes

    def draw(name: str) -> Tensor:
        shape = shapes[name]
        if len(shape) == 1:
            return torch.full(shape, float("bias" not in name))
        values = torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0, deviation, generator=generator)
        return values.cpu()

    for unit, names in engine.parameter_groups().items():
        yield unit, {name: draw(name) for name in names}
