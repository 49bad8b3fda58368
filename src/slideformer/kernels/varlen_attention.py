"""Causal attention within documents that lie one behind the other, by PyTorch's variable-length flash kernel.

    y[i] = softmax_j(scale * q[i] . k[j]) v[j]   over j <= i of the same document, at most `window` tokens back

The kernel is used where it was seen to compute that: its arguments changed between versions of PyTorch, so the first
use on a device compares output and gradients with the formula written out.
"""

import inspect
import warnings
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention.varlen import varlen_attn

HALF_PRECISION = (torch.bfloat16, torch.float16)
PROBE_LENGTHS, PROBE_WINDOW, PROBE_SCALE = (5, 64, 1, 130), 16, 0.2
NOTICEABLE = 2e-2  # of the largest value: a few roundings of bf16, less than any wrong mask


def takes(query: Tensor, value: Tensor) -> bool:
    """Whether the kernel is there for query [1, heads, tokens, d] and value [1, kv heads, tokens, dv], and was seen to
    be right on their device."""
    width = query.shape[-1]
    fits = value.shape[-1] <= width <= _widest_head(query.device) and width % 8 == 0
    return query.dtype in HALF_PRECISION and fits and agrees_with_reference(query.device, query.dtype)


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    lengths: tuple[int, ...],
    window: int | None,
    scale: float | None,
) -> Tensor:
    """[1, heads, tokens, d], with key and value [1, kv heads, tokens, d] -> [1, tokens, heads, dv].

    Args:
        bounds: [documents + 1] on the device; document i is `bounds[i] : bounds[i + 1]`.
        lengths: of the documents, on the host.
        window: tokens that a token sees, itself included; None: all before it.
        scale: of the scores; None: 1 / sqrt(d).
    """
    bounds, longest = bounds.to(torch.int32), max(lengths)
    groups: dict[str, Any] = {"enable_gqa": query.shape[1] != key.shape[1]} if _names_groups() else {}
    left = window - 1 if window and window < longest else -1
    missing = query.shape[-1] - value.shape[-1]  # the kernel wants equal widths; added columns stay columns of zeros
    query, key, padded = (tensor[0].transpose(0, 1) for tensor in (query, key, F.pad(value, (0, missing))))
    y = varlen_attn(
        query, key, padded, bounds, bounds, longest, longest, scale=scale, window_size=(left, 0), **groups
    )  # fmt: skip
    assert isinstance(y, Tensor)
    return y[..., : value.shape[-1]].unsqueeze(0)


def varlen_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], window: int | None, scale: float | None
) -> Tensor:
    """The same with one mask over all pairs of tokens, in fp32."""
    heads, kv_heads = query.shape[1], key.shape[1]
    q, k, v = (tensor[0].float() for tensor in (query, key, value))
    k, v = (tensor.repeat_interleave(heads // kv_heads, 0) for tensor in (k, v))
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(query.device)
    place = torch.arange(len(document), device=query.device)
    back = place[:, None] - place
    visible = (document[:, None] == document) & (back >= 0) & (back < (window or len(document)))
    scores = q @ k.mT * (scale or query.shape[-1] ** -0.5)
    y = scores.masked_fill(~visible, float("-inf")).softmax(-1) @ v
    return y.transpose(0, 1).unsqueeze(0)


@cache
def agrees_with_reference(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether output and gradients are the reference's on this device; says so once if they are not."""
    try:
        with saved_tensors_hooks(as_it_is, as_it_is):  # called inside a block, whose saved tensors are counted
            worst = max(_probe_error(device, dtype, window) for window in (None, PROBE_WINDOW))
        reason = f"it is {worst:.1e} from its reference" if not worst <= NOTICEABLE else ""
    except Exception as error:  # a kernel that this build lacks, arguments that this version does not know
        reason = f"{type(error).__name__}: {error}"
    if reason:
        message = (
            f"packing: PyTorch's variable-length attention is not used ({reason}); documents are attended one by one"
        )
        warnings.warn(message, stacklevel=2)
    return not reason


def _probe_error(device: torch.device, dtype: torch.dtype, window: int | None) -> float:
    """The largest difference of output and gradients, relative to the largest value of each."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, heads, sum(PROBE_LENGTHS), 64) for heads in (4, 2, 2))
    query, key, value = (torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes)
    bounds = torch.tensor([0, *PROBE_LENGTHS]).cumsum(0).to(device)
    with torch.enable_grad():
        ours = varlen_attention(query, key, value, bounds, PROBE_LENGTHS, window, PROBE_SCALE)
        expected = varlen_attention_reference(query, key, value, PROBE_LENGTHS, window, PROBE_SCALE)
    weights = torch.randn(expected.shape, generator=generator).to(device)
    gradients = (torch.autograd.grad((y.float() * weights).sum(), [query, key, value]) for y in (ours, expected))
    pairs = [(ours, expected), *zip(*gradients, strict=True)]
    pairs = [(one.detach().float(), other.detach().float()) for one, other in pairs]
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)


def as_it_is(tensor: Tensor) -> Tensor:
    return tensor


@cache
def _widest_head(device: torch.device) -> int:
    """Of the flash kernel with its backward; 0 where there is none."""
    if device.type != "cuda" or torch.version.hip is not None or not torch.backends.cuda.is_flash_attention_available():
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return 0
    return 256 if minor == 0 and major in (8, 9, 10) else 192


@cache
def _names_groups() -> bool:
    """Before it had a name for it, `varlen_attn` took fewer key heads than query heads as they came."""
    return "enable_gqa" in inspect.signature(varlen_attn).parameters
