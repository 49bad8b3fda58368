"""States and gradients for tests of AdamW: ordinary numbers, and those at the edges of fp32."""

import math
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from slideformer.optim.adamw import AdamWStep
from slideformer.optim.planes import split

Span = tuple[int, int, bool]
HYPER = AdamWStep(learning_rate=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.1, step=1)
SPECIAL = [0.0, -0.0, 1.4e-45, -1.4e-45, 1e-40, -1e-39, 1.1754944e-38, 1e-30, 1e18, -1e25, 3.4028235e38, math.inf]


@dataclass
class AdamState:
    """Planes and moments of a layer of [n] elements."""

    hi: Tensor
    lo: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor

    def to(self, device: str) -> "AdamState":
        return AdamState(**{name: tensor.to(device, copy=True) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def bits(self) -> dict[str, Tensor]:
        """The master and the moments as integers, on the CPU; every NaN as the same one."""
        planes = (self.hi.view(torch.int16).int() << 16) + self.lo.int()
        floats = {"master": planes.view(torch.float32), "exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}
        as_integers: dict[str, Tensor] = {}
        for name, values in floats.items():
            one_nan = torch.where(values.isnan(), torch.nan, values)
            as_integers[name] = one_nan.view(torch.int16 if values.dtype == torch.bfloat16 else torch.int32).cpu()
        return as_integers


def assert_same_state(ours: AdamState, expected: AdamState) -> None:
    """Equal bit for bit; one NaN is as good as another."""
    for (name, a), b in zip(ours.bits().items(), expected.bits().values(), strict=True):
        assert torch.equal(a, b), f"{name} differs at {(a != b).nonzero().flatten()[:8].tolist()}"


def make_state(numel: int, moment_dtype: torch.dtype, seed: int = 0) -> AdamState:
    """Random magnitudes over many decades; special values at seeded places."""
    torch.manual_seed(seed)
    master = sprinkled(torch.randn(numel) * torch.rand(numel).pow(8))
    exp_avg = sprinkled(torch.randn(numel) * 0.01)
    exp_avg_sq = sprinkled(torch.rand(numel).pow(4) * 0.01).abs()
    hi, lo = torch.empty(numel, dtype=torch.bfloat16), torch.empty(numel, dtype=torch.int16)
    split(master, hi, lo)
    return AdamState(hi, lo, exp_avg.to(moment_dtype), exp_avg_sq.to(moment_dtype))


def make_gradient(numel: int, dtype: torch.dtype, seed: int) -> Tensor:
    torch.manual_seed(1000 + seed)
    gradient = torch.randn(numel) * torch.rand(numel).pow(12)
    gradient[seed % 7 :: 7] = 0
    return sprinkled(gradient).to(dtype)


def sprinkled(values: Tensor) -> Tensor:
    """With every special value at one place in twenty or so, in all."""
    places = torch.randperm(values.numel())[: max(1, values.numel() // 20)]
    special = torch.tensor(SPECIAL, dtype=torch.float32)
    values[places] = special[torch.arange(len(places)) % len(special)]
    return values


def cut(numel: int) -> list[Span]:
    """Runs with and without decay, of odd sizes at odd places, with a hole and an empty one."""
    edges = [0, 1, 6, 6, 1029, 2048, 3079, numel - 3, numel]
    spans = [(a, b, k % 2 == 0) for k, (a, b) in enumerate(pairwise(edges)) if k != 4]
    assert all(start <= stop for start, stop, _ in spans)
    return spans


CASES: dict[str, dict[str, Any]] = {
    "usual": {},
    "scaled": dict(grad_scale=0.37),
    "beta1 zero": dict(beta1=0.0, beta2=0.95),
    "beta1 near the middle": dict(beta1=0.5, beta2=0.5),
    "no epsilon": dict(epsilon=0.0, weight_decay=0.0),
    "no rate": dict(learning_rate=0.0),
}
