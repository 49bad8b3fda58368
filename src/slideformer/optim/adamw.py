"""AdamW on CPU over a layer's planes and moments, and its written reference.

Decoupled weight decay as in Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019; the order of
operations and the fused multiply-adds are those of `torch.optim.AdamW(fused=True)` on CPU. docs/numerics.md has both.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from slideformer import _core
from slideformer.optim.rounding import LOW_16, Rounding, random_bits, round_stochastically
from slideformer.optim.threads import cpu_threads


@dataclass(frozen=True)
class AdamWScalars:
    """What the update of an element needs of the hyperparameters: computed in double, rounded to fp32 where used."""

    lerp_weight: float  # 1 - beta1
    beta2: float
    square_weight: float  # 1 - beta2
    negative_step_size: float  # -(learning_rate / (1 - beta1^step))
    bias_correction2_sqrt: float  # sqrt(1 - beta2^step)
    epsilon: float
    decay: float  # 1 - learning_rate * weight_decay
    grad_scale: float


@dataclass(frozen=True)
class AdamWStep:
    """Hyperparameters of one optimizer step.

    Args:
        step: 1 for the first step.
        grad_scale: multiplies the gradient before anything else (clipping, averaging).
        missed: of these steps, those that brought the elements no gradient: bias correction does not count them.
    """

    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    step: int
    grad_scale: float = 1.0
    missed: int = 0

    def scalars(self) -> AdamWScalars:
        counted = self.step - self.missed
        if counted < 1:
            raise ValueError(f"step is {counted}; the first step is 1")
        return AdamWScalars(
            lerp_weight=1 - self.beta1,
            beta2=self.beta2,
            square_weight=1 - self.beta2,
            negative_step_size=-(self.learning_rate / (1 - self.beta1**counted)),
            bias_correction2_sqrt=math.sqrt(1 - self.beta2**counted),
            epsilon=self.epsilon,
            decay=1 - self.learning_rate * self.weight_decay,
            grad_scale=self.grad_scale,
        )


class LayerAdam:
    """AdamW over the flat planes and moments of one layer, in place.

    Every form of the step gives the same bits for an element, whatever the threads and the instruction set. A
    gradient of `None` is a gradient of zeros: moments still decay, weights still move and decay.

    Args:
        hi: [n] bfloat16, CPU, contiguous: the rounded weights.
        lo: [n] int16: the rest of the master's bits.
        exp_avg: [n] float32 or bfloat16: first moment.
        exp_avg_sq: [n] of the same dtype: second moment.
        decay_spans: (start, stop, decayed) runs of elements, ascending; what no run covers is never updated.
        threads: OpenMP threads; by default all that this process may use.
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
        threads: int | None = None,
        rounding: Rounding | None = None,
    ):
        self.numel = hi.numel()
        check_state(hi, lo, exp_avg, exp_avg_sq, "cpu")
        check_spans(decay_spans, self.numel)
        self.hi, self.lo, self.exp_avg, self.exp_avg_sq = hi, lo, exp_avg, exp_avg_sq
        self.decay_spans = decay_spans
        self.threads = threads or cpu_threads()
        self.rounding = rounding or Rounding()
        self._spans = _as_tensor(decay_spans)

    def step(self, grad: Tensor | None, hyper: AdamWStep) -> None:
        """Update the whole layer.

        Args:
            grad: [n] bfloat16 or float32, or None.
        """
        self._update(grad, (self.numel,), self._spans, hyper)

    def step_spans(self, spans: list[tuple[int, int, bool]], grad: Tensor | None, hyper: AdamWStep) -> None:
        """Update some runs of elements.

        Args:
            spans: (start, stop, decayed), ascending.
            grad: [n] bfloat16 or float32, read inside those runs only, or None.
        """
        self._update(grad, (self.numel,), _as_tensor(spans), hyper)

    def step_rows(self, rows: Tensor, grad: Tensor | None, hyper: AdamWStep, width: int) -> None:
        """Update some rows of a table that fills the layer from its first element.

        Args:
            rows: [r] int64, ascending, none twice.
            grad: [r, width] bfloat16 or float32, the gradients of those rows alone, or None.
            width: elements a row.
        """
        starts = self._row_starts(rows, width)
        grad_starts = torch.arange(0, starts.numel() * width, width)
        self._update(grad, (rows.numel(), width), self._table_spans(starts, starts + width, grad_starts), hyper)

    def step_except_rows(self, rows: Tensor, grad: Tensor | None, hyper: AdamWStep, width: int) -> None:
        """Update all elements but those of some rows, so that with `step_rows` each is updated once.

        Args:
            rows: [r] int64, ascending, none twice.
            grad: [n] bfloat16 or float32, read outside those rows only, or None.
            width: elements a row.
        """
        row_starts = self._row_starts(rows, width)
        edges = row_starts.new_tensor([0, self.numel])
        starts, stops = torch.cat([edges[:1], row_starts + width]), torch.cat([row_starts, edges[1:]])
        self._update(grad, (self.numel,), self._table_spans(starts, stops, starts), hyper)  # some spans are empty

    def _row_starts(self, rows: Tensor, width: int) -> Tensor:
        check_tensor("rows", rows, (torch.int64,), (rows.numel(),), "cpu")
        table_rows = self.numel // width
        inside = rows.numel() == 0 or (rows[0] >= 0 and rows[-1] < table_rows)
        if not (inside and bool((rows[1:] > rows[:-1]).all())):
            raise ValueError(f"rows must ascend, without repetition, from 0 to at most {table_rows - 1}")
        return rows * width

    def _table_spans(self, starts: Tensor, stops: Tensor, grad_starts: Tensor) -> Tensor:
        if len(self.decay_spans) != 1:
            raise ValueError("a layer updated by rows needs one decay setting for all its elements")
        decay = torch.full_like(starts, int(self.decay_spans[0][2]))
        return torch.stack([starts, stops, grad_starts, decay], dim=1)

    def _update(self, grad: Tensor | None, grad_shape: tuple[int, ...], spans: Tensor, hyper: AdamWStep) -> None:
        if grad is not None:
            check_tensor("grad", grad, (torch.bfloat16, torch.float32), grad_shape, "cpu")
            grad = grad.view(-1)
        _core.adamw(
            self.hi,
            self.lo,
            self.exp_avg,
            self.exp_avg_sq,
            grad,
            spans,
            **vars(hyper.scalars()),
            rounding_key=self.rounding.key(hyper.step),
            num_threads=self.threads,
        )


def _as_tensor(spans: list[tuple[int, int, bool]]) -> Tensor:
    """[k, 4] int64: start, stop, where the span's gradient begins, decayed."""
    return torch.tensor([(a, b, a, int(d)) for a, b, d in spans], dtype=torch.int64).view(-1, 4)


def check_state(hi: Tensor, lo: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, device: torch.device | str) -> None:
    numel = hi.numel()
    moment = torch.bfloat16 if exp_avg.dtype == torch.bfloat16 else torch.float32
    check_tensor("hi", hi, (torch.bfloat16,), (numel,), device)
    check_tensor("lo", lo, (torch.int16,), (numel,), device)
    check_tensor("exp_avg", exp_avg, (moment,), (numel,), device)
    check_tensor("exp_avg_sq", exp_avg_sq, (moment,), (numel,), device)


def check_spans(spans: list[tuple[int, int, bool]], numel: int) -> None:
    for start, stop, _ in spans:
        if not 0 <= start <= stop <= numel:
            raise ValueError(f"decay span [{start}, {stop}) lies outside a layer of {numel} elements")


def check_tensor(
    name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...], shape: tuple[int, ...], device: torch.device | str
) -> None:
    if tensor.dtype not in dtypes or tensor.device != torch.device(device) or not tensor.is_contiguous():
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        layout = "contiguous" if tensor.is_contiguous() else "strided"
        raise TypeError(
            f"{name} is {layout} {tensor.dtype} on {tensor.device}; it must be contiguous {wanted} on {device}"
        )
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; expected {list(shape)}")


def adamw_reference(
    master: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    grad: Tensor,
    hyper: AdamWStep,
    decay: bool,
    rounding: Rounding | None = None,
    first: int = 0,
) -> None:
    """One AdamW step in PyTorch, in place, on any device: what every other implementation must equal bit for bit.

    Args:
        master: [n] float32.
        exp_avg: [n] float32 or bfloat16: first moment.
        exp_avg_sq: [n] of the same dtype: second moment.
        grad: [n] bfloat16 or float32.
        decay: whether weight decay applies to these elements.
        rounding: as `LayerAdam`'s.
        first: where in the layer the first of these elements stands; bfloat16 moments are rounded by their place.
    """
    # Tensors, not Python numbers: some devices divide by a number by multiplying with its reciprocal.
    scalars = vars(hyper.scalars()).items()
    s = {name: torch.tensor(value, dtype=torch.float32, device=master.device) for name, value in scalars}
    g = grad.float() * s["grad_scale"]
    m_before, v_before = exp_avg.float(), exp_avg_sq.float()
    if s["lerp_weight"] < 0.5:
        m = _fma(s["lerp_weight"], g - m_before, m_before)
    else:  # from the nearer end, so that beta1 = 0 gives exactly the gradient
        m = _fma(s["lerp_weight"] - 1, g - m_before, g)
    v = _fma(s["square_weight"] * g, g, v_before * s["beta2"])
    denominator = _sqrt(v) / s["bias_correction2_sqrt"] + s["epsilon"]
    if decay:
        master.mul_(s["decay"])
    master.add_(s["negative_step_size"] * m / denominator)
    if exp_avg.dtype == torch.bfloat16:  # the weight has moved by the exact moments; only what is kept is rounded
        places = torch.arange(first, first + m.numel(), device=m.device)
        random = random_bits((rounding or Rounding()).key(hyper.step), places)
        m, v = round_stochastically(m, random & LOW_16), round_stochastically(v, random >> 16)
    exp_avg.copy_(m)
    exp_avg_sq.copy_(v)


def _sqrt(x: Tensor) -> Tensor:
    """Correctly rounded fp32 square root (torch.sqrt of fp32 on CPU is not).

    Exact through float64: the root of a 24-bit number is at least four float64 ulps from any midpoint between two
    fp32 numbers, so a small float64 error cannot cross one.
    """
    return x.double().sqrt().float()


def _fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a * b + c with one rounding, for fp32 tensors.

    The product is exact in float64; the sum is rounded to odd there, which keeps a second rounding, to fp32, exact
    (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd",
    IEEE Transactions on Computers 57(4), 2008).
    """
    product, addend = a.double() * b.double(), c.double()
    total = product + addend
    # What the sum's rounding lost, exactly (Knuth's TwoSum).
    addend_used = total - product
    lost = (product - (total - addend_used)) + (addend - addend_used)
    bits = total.view(torch.int64)
    toward_lost = torch.where((lost > 0) == (total > 0), 1, -1)  # away from zero, or towards it
    to_odd = (lost != 0) & (bits & 1 == 0) & total.isfinite()
    return torch.where(to_odd, bits + toward_lost, bits).view(torch.float64).float()
