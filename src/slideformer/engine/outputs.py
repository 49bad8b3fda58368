"""Outputs of the expensive operators of a block: recorded in its forward, handed out when it is run again.

A block that is run again with them computes no matrix product and no attention twice. The rest of it (norms, rotary
embedding, activations, casts) costs a few passes over memory, and most of what it makes need not be held.

What is expensive is said by operator, below autograd, so no model is known here. `torch.utils.checkpoint` has selective
contexts for the same purpose; these hold no more than an operator's results and need no policy at each call.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from slideformer.memory.host_outputs import starts

EXPENSIVE = frozenset({
    "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_mm", "aten::_grouped_mm",
    "aten::_scaled_grouped_mm", "aten::convolution",
    "aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention", "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable", "aten::_flash_attention_forward",
    "aten::_efficient_attention_forward", "aten::_cudnn_attention_forward", "torch_attn::_varlen_attn",
})  # fmt: skip


@dataclass(frozen=True)
class Results:
    """What one call of an operator gave, and how it was at that time.

    Attributes:
        saved: tensors that autograd had saved when the operator was called.
        versions: of the tensors among `values`, which change if one of them is written to.
    """

    operator: Any
    values: tuple[Any, ...]
    is_tuple: bool
    saved: int
    versions: tuple[int, ...]

    @property
    def unchanged(self) -> bool:
        return self.versions == _versions(self.values)

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in self.values if isinstance(value, Tensor))


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in memory that can be elsewhere by the time it is read; `offset` in elements."""

    offset: int
    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def within(self, storage: torch.UntypedStorage) -> Tensor:
        view = torch.empty(0, dtype=self.dtype, device=storage.device)
        return view.set_(storage, self.offset, self.size, self.stride)


def memory_of(results: Iterable[Results]) -> list[Tensor]:
    """All memory of the results on the device of the first, each piece once, as uint8 [bytes]."""
    tensors = [value for result in results for value in result.values if isinstance(value, Tensor) and value.numel()]
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage()
        for tensor in tensors
        if tensor.device == tensors[0].device
    }
    return [
        Place(0, torch.Size((storage.nbytes(),)), (1,), torch.uint8).within(storage) for storage in storages.values()
    ]


def placed(results: Iterable[Results], memory: list[Tensor]) -> deque[Results]:
    """The results with tensors replaced by their places, when `memory` is laid out one behind the other."""
    begin = {piece.data_ptr(): start for piece, start in zip(memory, starts(memory), strict=True)}

    def place(value: Any) -> Any:
        if not isinstance(value, Tensor) or (first := value.untyped_storage().data_ptr()) not in begin:
            return value
        offset = begin[first] // value.itemsize + int(value.storage_offset())
        return Place(offset, value.size(), value.stride(), value.dtype)

    return deque(replace(result, values=tuple(map(place, result.values))) for result in results)


def found_in(results: Iterable[Results], memory: Tensor) -> deque[Results]:
    """The results with their tensors in `memory` (uint8), where `placed` said."""

    def found(value: Any) -> Any:
        return value.within(memory.untyped_storage()) if isinstance(value, Place) else value

    return deque(replace(result, values=tuple(map(found, result.values))) for result in results)


class Recorder(TorchDispatchMode):
    """Holds what the expensive operators that run within give.

    Args:
        saved: how many tensors autograd has saved so far.
    """

    def __init__(self, saved: Callable[[], int]):
        super().__init__()
        self._saved = saved
        self._results: list[Results] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if is_expensive(func, args, kwargs):
            is_tuple = isinstance(result, tuple | list)
            values = tuple(map(_held, result if is_tuple else (result,)))
            self._results.append(Results(func, values, is_tuple, self._saved(), _versions(values)))
        return result

    def take(self) -> deque[Results]:
        """What backward will need: without what came behind the last tensor that it asks for. Empty if a result was
        written to, so that it is not what the operator gave: then all is computed again."""
        last, results = self._saved(), self._results
        self._results = []
        if not all(result.unchanged for result in results):
            return deque()
        return deque(result for result in results if result.saved < last)


class Repeater(TorchDispatchMode):
    """Hands out recorded results in place of running the operators again, in the same order."""

    def __init__(self, results: deque[Results]):
        super().__init__()
        self._results = results

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._results or not is_expensive(func, args, kwargs):
            return func(*args, **(kwargs or {}))
        result = self._results.popleft()
        if result.operator is not func:
            raise RuntimeError(f"a block called {result.operator} in forward and {func} when it was run again")
        return result.values if result.is_tuple else result.values[0]


def is_expensive(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether the results are worth holding. Attention with dropout is not left out, so that the random numbers of what
    follows it are those of forward."""
    place = _dropout_place(func)
    if place is None or place == NOT_EXPENSIVE:
        return place is None
    return not (args[place] if place < len(args) else (kwargs or {}).get("dropout_p", 0.0))


NOT_EXPENSIVE = -1


@cache
def _dropout_place(func: Any) -> int | None:
    """Of its argument in an expensive operator's call; None if it has none."""
    if func._schema.name not in EXPENSIVE:
        return NOT_EXPENSIVE
    names = [argument.name for argument in func._schema.arguments]
    return names.index("dropout_p") if "dropout_p" in names else None


def _held(value: Any) -> Any:
    """The same memory without the graph that autograd attaches to what an operator returns; written to at the same
    time. Below autograd only this guard makes versions count together."""
    if not isinstance(value, Tensor):
        return value
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
        return value.detach()


def _versions(values: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(value._version for value in values if isinstance(value, Tensor))
