"""Small unit states with random contents."""

from collections.abc import Callable

import pytest
import torch

from slideformer.layout import FlatLayout
from slideformer.storage.checkpoint import UnitState, empty_planes

SHAPES = {"embedding": {"weight": (16, 8)}, "model.layers.0": {"q": (8, 8), "norm": (8,)}, "shell": {}}


def random_units(seed: int) -> dict[str, UnitState]:
    generator = torch.Generator().manual_seed(seed)
    units = {}
    for name, shapes in SHAPES.items():
        layout = FlatLayout(shapes)
        tensors = empty_planes(layout.numel, layout.trained_numel)
        for tensor in tensors.values():
            random = torch.randint(0, 256, (tensor.nbytes,), generator=generator, dtype=torch.uint8)
            tensor.view(torch.uint8).copy_(random)
        units[name] = UnitState(layout, tensors)
    return units


@pytest.fixture
def make_units() -> Callable[[int], dict[str, UnitState]]:
    return random_units
