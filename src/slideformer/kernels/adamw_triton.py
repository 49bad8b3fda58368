"""The Triton kernel behind `DeviceAdam`: csrc/adamw_kernel.h on a GPU, operation by operation.

Every fused multiply-add is explicit and none is added (`enable_fp_fusion=False`), square root and division are those
rounded to nearest, and denormals are kept: an element gets the bits that the CPU gives it. 16-bit floats are read and
written as the int16 they are made of.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportInvalidTypeForm=false, reportArgumentType=false

import triton
import triton.language as tl
from torch import Tensor

from slideformer.kernels.bfloat16_triton import as_bits, load_float

# Four elements a thread: one 16-byte access to an fp32 moment, 8 bytes of a plane. With eight, Triton lays fp32 and
# 16-bit values out differently and exchanges them through shared memory.
BLOCK = 1024
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}


@triton.jit
def _random_bits(element, key_low, key_high):
    """32 bits for an element of the layer: csrc/rounding.h."""
    x = element.to(tl.uint32) + key_low.to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = x ^ key_high.to(tl.uint32)
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _round_stochastically(x, random):
    """bf16 as int16; of a NaN, whose payload could carry into the sign, the upper half."""
    bits = x.to(tl.uint32, bitcast=True) + tl.where(x == x, random, 0)
    return (bits >> 16).to(tl.int16)


@triton.jit
def _update(
    hi, lo, exp_avg, exp_avg_sq, grad, element, mask,
    lerp_weight, beta2, square_weight, negative_step_size, bias_correction2_sqrt, epsilon, decay, grad_scale,
    key_low, key_high,
):  # fmt: skip
    m = load_float(exp_avg + element, mask)
    v = load_float(exp_avg_sq + element, mask)
    g = tl.zeros_like(m) if grad is None else load_float(grad + element, mask) * grad_scale
    high = tl.load(hi + element, mask=mask).to(tl.int32)
    low = tl.load(lo + element, mask=mask).to(tl.int32)
    p = ((high << 16) + low).to(tl.float32, bitcast=True)

    from_gradient = lerp_weight >= 0.5  # from the nearer end, so that beta1 = 0 gives exactly the gradient
    lerp = tl.where(from_gradient, lerp_weight - 1.0, lerp_weight)
    m = tl.fma(tl.zeros_like(m) + lerp, g - m, tl.where(from_gradient, g, m))
    v = tl.fma(square_weight * g, g, v * beta2)
    root = tl.div_rn(tl.sqrt_rn(v), tl.zeros_like(v) + bias_correction2_sqrt)
    p = p * decay + tl.div_rn(negative_step_size * m, root + epsilon)

    if exp_avg.dtype.element_ty == tl.int16:
        random = _random_bits(element, key_low, key_high)
        tl.store(exp_avg + element, _round_stochastically(m, random & 0xFFFF), mask=mask)
        tl.store(exp_avg_sq + element, _round_stochastically(v, random >> 16), mask=mask)
    else:
        tl.store(exp_avg + element, m, mask=mask)
        tl.store(exp_avg_sq + element, v, mask=mask)
    bits = p.to(tl.uint32, bitcast=True)
    tl.store(hi + element, ((bits + 0x8000) >> 16).to(tl.int16), mask=mask)
    tl.store(lo + element, bits.to(tl.int16), mask=mask)


@triton.jit(do_not_specialize=["start", "stop", "key_low", "key_high"], do_not_specialize_on_alignment=["gate"])
def _adamw_kernel(
    hi, lo, exp_avg, exp_avg_sq, grad, gate, start: tl.int64, stop: tl.int64,
    lerp_weight, beta2, square_weight, negative_step_size, bias_correction2_sqrt, epsilon, decay, grad_scale,
    key_low: tl.int32, key_high: tl.int32, block: tl.constexpr,
):  # fmt: skip
    if gate is not None:
        exponent = tl.load(gate).to(tl.int32, bitcast=True) & 0x7F800000
        stop = tl.where(exponent == 0x7F800000, start, stop)  # NaN or infinite: nothing is inside
    # Programs begin at multiples of the block, wherever the span does, and all but its two ends need no mask: wide,
    # aligned accesses for any span.
    first = (start // block + tl.program_id(0)) * block
    element = first + tl.arange(0, block).to(tl.int64)
    if (first >= start) & (first + block <= stop):
        _update(
            hi, lo, exp_avg, exp_avg_sq, grad, element, None,
            lerp_weight, beta2, square_weight, negative_step_size, bias_correction2_sqrt, epsilon, decay, grad_scale,
            key_low, key_high,
        )  # fmt: skip
    else:
        _update(
            hi, lo, exp_avg, exp_avg_sq, grad, element, (element >= start) & (element < stop),
            lerp_weight, beta2, square_weight, negative_step_size, bias_correction2_sqrt, epsilon, decay, grad_scale,
            key_low, key_high,
        )  # fmt: skip


def adamw_triton(
    hi: Tensor,
    lo: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    grad: Tensor | None,
    gate: Tensor | None,
    span: tuple[int, int],
    *,
    lerp_weight: float,
    beta2: float,
    square_weight: float,
    negative_step_size: float,
    bias_correction2_sqrt: float,
    epsilon: float,
    decay: float,
    grad_scale: float,
    rounding_key: int,
) -> None:
    """One AdamW step of the elements [start, stop) of a layer, in place, on the current stream.

    Args:
        hi: [n] bfloat16.
        lo: [n] int16.
        exp_avg, exp_avg_sq: [n] float32, or bfloat16, rounded stochastically.
        grad: [n] float32 or bfloat16; None for zeros.
        gate: float32 scalar on the device; where it is not finite when the kernel runs, nothing changes.
        rounding_key: 64 bits, of `Rounding.key`.

    The scalars are those of `AdamWScalars`, rounded to fp32 here.
    """
    start, stop = span
    programs = triton.cdiv(stop, BLOCK) - start // BLOCK
    if start >= stop:
        return
    _adamw_kernel[(programs,)](
        as_bits(hi), lo, as_bits(exp_avg), as_bits(exp_avg_sq), None if grad is None else as_bits(grad), gate,
        start, stop,
        lerp_weight, beta2, square_weight, negative_step_size, bias_correction2_sqrt, epsilon, decay, grad_scale,
        _signed(rounding_key), _signed(rounding_key >> 32), block=BLOCK, **OPTIONS,
    )  # fmt: skip


def _signed(bits: int) -> int:
    """The low 32 bits as an int32."""
    return ((bits & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000
