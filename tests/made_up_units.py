"""Small unit states with random contents."""

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor

from slideformer.layout import FlatLayout
from slideformer.storage.checkpoint import UnitState, empty_planes

SHAPES = {"embedding": {"weight": (16, 8)}, "model.layers.0": {"q": (8, 8), "norm": (8,)}, "shell": {}}


class InMemory:
    """Tensors as a state hands them out."""

    def __init__(self, tensors: dict[str, Tensor]):
        self._tensors = tensors

    def tensors(self) -> dict[str, Tensor]:
        return self._tensors


def unit_in_memory(layout: FlatLayout, tensors: dict[str, Tensor]) -> UnitState:
    return UnitState(layout, lambda change: nullcontext(InMemory(tensors)))


def random_units(seed: int) -> dict[str, UnitState]:
    generator = torch.Generator().manual_seed(seed)
    units = {}
    for name, shapes in SHAPES.items():
        layout = FlatLayout(shapes)
        tensors = empty_planes(layout.numel, layout.trained_numel)
        for tensor in tensors.values():
            random = torch.randint(0, 256, (tensor.nbytes,), generator=generator, dtype=torch.uint8)
            tensor.view(torch.uint8).copy_(random)
        units[name] = unit_in_memory(layout, tensors)
    return units


def tensors_of(unit: UnitState) -> Mapping[str, Tensor]:
    with unit.opened(False) as state:
        return state.tensors()
