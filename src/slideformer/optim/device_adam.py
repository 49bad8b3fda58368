"""AdamW over planes and moments that lie on the GPU: `LayerAdam`'s twin, with the same bits."""

from importlib.util import find_spec

import torch
from torch import Tensor

from slideformer.optim.adamw import AdamWStep, LayerAdam, check_spans, check_state, check_tensor
from slideformer.optim.rounding import Rounding

if find_spec("triton") is not None:
    from slideformer.kernels.adamw_triton import adamw_triton


class DeviceAdam:
    """AdamW over the flat planes and moments of one layer, in place, on the device that holds them.

    An element gets the bits that `LayerAdam` gives it. Steps are enqueued on the current stream, one kernel a span;
    nothing waits for the host, and no memory is taken. Tensors on the CPU are updated by `LayerAdam`, at once.

    Args:
        hi: [n] bfloat16, contiguous: the rounded weights.
        lo: [n] int16: the rest of the master's bits.
        exp_avg: [n] float32 or bfloat16: first moment.
        exp_avg_sq: [n] of the same dtype: second moment.
        decay_spans: (start, stop, decayed) runs of elements, ascending; what no run covers is never updated.
        rounding: source of the random bits that round bfloat16 moments; by default that of seed 0, unit 0.

    Raises:
        TypeError: a tensor is not of that dtype, on another device or strided.
        ValueError: lengths differ, or a run lies outside.
    """

    def __init__(
        self,
        hi: Tensor,
        lo: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        decay_spans: list[tuple[int, int, bool]],
        rounding: Rounding | None = None,
    ):
        check_state(hi, lo, exp_avg, exp_avg_sq, hi.device)
        check_spans(decay_spans, hi.numel())
        self.hi, self.lo, self.exp_avg, self.exp_avg_sq = hi, lo, exp_avg, exp_avg_sq
        self.numel = hi.numel()
        self.decay_spans = decay_spans
        self.rounding = rounding or Rounding()
        self._on_host = None
        if hi.device.type == "cpu":
            self._on_host = LayerAdam(hi, lo, exp_avg, exp_avg_sq, decay_spans, rounding=rounding)

    def step(self, grad: Tensor | None, hyper: AdamWStep, gate: Tensor | None = None) -> None:
        """Update the whole layer.

        Args:
            grad: [n] bfloat16 or float32, on the layer's device; None for zeros.
            gate: float32 scalar on the device, or None. If it is NaN or infinite when the kernel runs, nothing changes.
        """
        self.step_spans(self.decay_spans, grad, hyper, gate)

    def step_spans(
        self,
        spans: list[tuple[int, int, bool]],
        grad: Tensor | None,
        hyper: AdamWStep,
        gate: Tensor | None = None,
    ) -> None:
        """Update some runs of elements.

        Args:
            spans: (start, stop, decayed), ascending.
            grad: as in `step`; read inside those runs only.
            gate: as in `step`.
        """
        check_spans(spans, self.numel)
        if gate is not None:
            check_tensor("gate", gate, (torch.float32,), (), self.hi.device)
        if self._on_host is None:
            self._enqueue(spans, grad, hyper, gate)
        elif gate is None or gate.isfinite():
            self._on_host.step_spans(spans, grad, hyper)

    def _enqueue(
        self, spans: list[tuple[int, int, bool]], grad: Tensor | None, hyper: AdamWStep, gate: Tensor | None
    ) -> None:
        if grad is not None:
            check_tensor("grad", grad, (torch.bfloat16, torch.float32), (self.numel,), self.hi.device)
        state = (self.hi, self.lo, self.exp_avg, self.exp_avg_sq)
        scalars, key = vars(hyper.scalars()), self.rounding.key(hyper.step)
        for start, stop, decayed in spans:
            decay = scalars["decay"] if decayed else 1.0
            adamw_triton(*state, grad, gate, (start, stop), **scalars | {"decay": decay}, rounding_key=key)
