"""Attention over packed rows, each document seeing only itself, through transformers' attention interface.

Under a name of its own, this function takes the place of the model's attention (`sdpa` or `eager`, called its base).
transformers builds no masks for a name that it does not know, so no [T, T] mask ever exists. What the masks would have
said comes from two sides: the boundaries of documents from whoever runs a block (`attending`), the sliding window from
the model, which hands it to every attention function.

There are two ways, and both read the same arguments: one variable-length kernel over all documents, where the base is
plain scaled dot-product attention on a GPU that has the kernel; otherwise the base, one document after the other.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from slideformer.errors import UnsupportedModel
from slideformer.kernels import varlen_attention

BASES = ("sdpa", "eager")
PADDED = "set packing: false; records are then padded"  # the remedy wherever a model cannot be packed
PER_TOKEN = ("position_ids", "cache_position")  # arguments of attention functions that neither way reads


@dataclass(frozen=True, eq=False)
class Documents:
    """The documents of one micro-batch, its rows one behind the other; the padding of a row is one of them.

    Attributes:
        positions: int64 [b, t], each token's place in its document.
        bounds: integers [documents + 1] on the device; document i is `bounds[i] : bounds[i + 1]` of the b * t tokens.
        lengths: the same on the host, as tokens of each document.
    """

    positions: Tensor
    bounds: Tensor
    lengths: tuple[int, ...]


_documents: ContextVar[Documents | None] = ContextVar("documents", default=None)


@contextmanager
def attending(documents: Documents | None) -> Iterator[None]:
    """Within, in this thread, packed attention keeps these documents apart; None: each row is one document."""
    token = _documents.set(documents)
    try:
        yield
    finally:
        _documents.reset(token)


def use_packed_attention(model: PreTrainedModel) -> tuple[str, str]:
    """Make `model` attend within documents only; returns the names of its own attention and of this one.

    Raises:
        UnsupportedModel: its positions cannot be given, or its attention is none that can be taken apart.
    """
    kind, config = type(model).__name__, model.config
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise UnsupportedModel(f"packing: {kind} takes no position_ids, which restart in each document", PADDED)
    base = config.get_text_config()._attn_implementation
    if base not in BASES:
        raise UnsupportedModel(
            f"packing: {kind} with attn_implementation {base}; documents can be kept apart in {' and '.join(BASES)}",
            "set attn_implementation: null, or packing: false",
        )
    name = f"slideformer_packed_{base}"
    AttentionInterface.register(name, partial(packed_attention, base))
    config._attn_implementation = name
    return base, name


def packed_attention(
    base: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within documents: query [b, heads, t, d], key and value [b, kv heads, t, d] -> [b, t, heads, d].

    Raises:
        UnsupportedModel: the call is not plain causal self-attention.
    """
    _refuse_other_attention(module, query, key, attention_mask, kwargs)
    b, _, t, _ = query.shape
    documents = _documents.get() or _whole_rows(b, t, query.device)
    if sum(documents.lengths) != b * t:
        raise ValueError(f"documents of {sum(documents.lengths)} tokens in {b} rows of {t}")
    query, key, value = (_rows_in_one(tensor) for tensor in (query, key, value))
    if base == "sdpa" and _kernel_knows(kwargs) and varlen_attention.takes(query, value):
        scale = kwargs.get("scaling")
        y = varlen_attention.varlen_attention(
            query, key, value, documents.bounds, documents.lengths, sliding_window, scale
        )  # fmt: skip
    else:
        y = _one_by_one(base, module, (query, key, value), documents.lengths, sliding_window, kwargs)
    return y.unflatten(1, (b, t)).squeeze(0), None


def _refuse_other_attention(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, kwargs: dict[str, Any]
) -> None:
    is_causal = kwargs.get("is_causal")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        reason = "looks at later tokens"
    elif query.shape[2] != key.shape[2]:
        reason = "is over tokens other than its own"
    elif mask is not None:
        reason = "has a mask of its own"
    elif kwargs.get("position_bias") is not None:
        reason = "adds a bias for each pair of positions"
    else:
        return
    raise UnsupportedModel(f"packing: {type(module).__name__} {reason}", PADDED)


def _whole_rows(b: int, t: int, device: torch.device) -> Documents:
    positions = torch.arange(t, device=device).expand(b, t)
    return Documents(positions, torch.arange(0, (b + 1) * t, t, device=device), (t,) * b)


def _rows_in_one(tensor: Tensor) -> Tensor:
    """[b, heads, t, d] -> [1, heads, b * t, d]; no copy where the model projected to [b, t, heads, d], as most do."""
    return tensor.transpose(1, 2).flatten(0, 1).transpose(0, 1).unsqueeze(0)


def _kernel_knows(kwargs: dict[str, Any]) -> bool:
    """Whether all that is asked for is plain attention: the kernel has no dropout, soft-cap or other additions."""
    extras = any(isinstance(given, Tensor) for name, given in kwargs.items() if name not in PER_TOKEN)
    return not kwargs.get("dropout") and kwargs.get("softcap") is None and not extras


# ---- the base, one document after the other


def _one_by_one(
    base: str,
    module: nn.Module,
    tensors: tuple[Tensor, Tensor, Tensor],
    lengths: tuple[int, ...],
    window: int | None,
    kwargs: dict[str, Any],
) -> Tensor:
    """[1, heads, tokens, d] -> [1, tokens, heads, d]."""
    attend = _eager_of(module) if base == "eager" else AttentionInterface()[base]
    query = tensors[0]
    mask = _mask(base, max(lengths), window, query)
    parts = []
    for q, k, v in zip(*(tensor.split(lengths, dim=2) for tensor in tensors), strict=True):
        n = q.shape[2]
        needs_mask = base == "eager" or (window and n > window)
        cut = mask[..., :n, :n] if needs_mask and mask is not None else None
        parts.append(attend(module, q, k, v, cut, sliding_window=window, **kwargs)[0])
    return torch.cat(parts, dim=1)


def _mask(base: str, longest: int, window: int | None, like: Tensor) -> Tensor | None:
    """[1, 1, n, n] as the base takes it: additive for eager, for sdpa boolean or, if only causal, none."""
    if base == "sdpa" and not (window and longest > window):
        return None
    visible = torch.ones(longest, longest, dtype=torch.bool, device=like.device).tril()
    if window:
        visible = visible.triu(1 - window)
    if base == "eager":
        zeros = torch.zeros(visible.shape, dtype=like.dtype, device=like.device)
        visible = zeros.masked_fill(~visible, torch.finfo(like.dtype).min)
    return visible[None, None]


def _eager_of(module: nn.Module) -> Callable[..., tuple[Tensor, Any]]:
    """The function that the module's own file falls back to; families differ in it (soft-caps, sinks)."""
    for kind in type(module).__mro__:
        found = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
        if found is not None:
            return found
    raise UnsupportedModel(f"packing: {type(module).__name__} has no eager_attention_forward in its module", PADDED)
