"""What the model's forward passes to one block, and the tensors in it, however deep."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Path = tuple[Any, ...]  # of keys and positions: ("kwargs", "position_embeddings", 0)


@dataclass(frozen=True)
class BlockCall:
    """The call of one block beside the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def leaves_of(call: BlockCall) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor of a call with its path; one that is there twice comes twice."""
    yield from _leaves(("args",), call.args)
    yield from _leaves(("kwargs",), call.kwargs)


def leaf_at(call: BlockCall, path: Path) -> Tensor:
    value: Any = vars(call)
    for key in path:
        value = value[key]
    return value


def with_leaves(call: BlockCall, leaves: Mapping[Path, Tensor]) -> BlockCall:
    """The same call with other tensors at these paths."""
    args, kwargs = call.args, call.kwargs
    for path, leaf in leaves.items():
        if path[0] == "args":
            args = _replaced(args, path[1:], leaf)
        else:
            kwargs = _replaced(kwargs, path[1:], leaf)
    return BlockCall(args, kwargs)


def _leaves(path: Path, value: Any) -> Iterator[tuple[Path, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves((*path, key), item)
    elif isinstance(value, tuple | list):
        for position, item in enumerate(value):
            yield from _leaves((*path, position), item)


def _replaced(value: Any, path: Path, leaf: Tensor) -> Any:
    if not path:
        return leaf
    key, *rest = path
    if isinstance(value, dict):
        return {**value, key: _replaced(value[key], tuple(rest), leaf)}
    items = [_replaced(item, tuple(rest), leaf) if n == key else item for n, item in enumerate(value)]
    return type(value)(items) if type(value) in (tuple, list) else type(value)(*items)
