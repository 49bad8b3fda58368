"""The C++ loops. Arrays are one-dimensional contiguous CPU tensors, changed in place; the GIL is released."""

from torch import Tensor

def split(master: Tensor, hi: Tensor, lo: Tensor, num_threads: int) -> None: ...
def join(hi: Tensor, lo: Tensor, out: Tensor, num_threads: int) -> None: ...
def copy(from_: Tensor, to: Tensor, num_threads: int) -> None:
    """uint8 [n] to uint8 [n], which does not overlap it."""

def adamw(
    hi: Tensor,
    lo: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    grad: Tensor | None,
    spans: Tensor,
    *,
    lerp_weight: float,
    beta2: float,
    square_weight: float,
    negative_step_size: float,
    bias_correction2_sqrt: float,
    epsilon: float,
    decay: float,
    grad_scale: float,
    rounding_key: int = 0,
    num_threads: int,
) -> None:
    """Spans [k, 4] int64: start, stop, where the gradient begins (-1: zeros there), 0 or 1 for weight decay."""

def selected_isa() -> str:
    """The instruction set in use: the widest, or what SLIDEFORMER_ISA names (RuntimeError if not available)."""

def available_isas() -> list[str]:
    """Widest first."""
