"""Placeholder until the kernel is merged: on CPU tensors, LayerAdam."""

import torch
from torch import Tensor

from slideformer.optim.adamw import AdamWStep, LayerAdam


class DeviceAdam:
    def __init__(self, hi, lo, exp_avg, exp_avg_sq, decay_spans, rounding=None):
        self._adam = LayerAdam(hi, lo, exp_avg, exp_avg_sq, decay_spans, 1, rounding)

    def step(self, grad, hyper: AdamWStep, gate: Tensor | None = None):
        if gate is None or bool(torch.isfinite(gate)):
            self._adam.step(grad, hyper)

    def step_spans(self, spans, grad, hyper: AdamWStep, gate: Tensor | None = None):
        if gate is None or bool(torch.isfinite(gate)):
            self._adam.step_spans(spans, grad, hyper)
