"""Keys and values of earlier tokens: whether a model keeps them through transformers' cache classes, and where."""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from slideformer.models.architecture import Decoder
from slideformer.models.stand_ins import DecoderInputs

ARGUMENT_NAMES = ("cache", "past_key_values")  # in newer and older versions of transformers


def cache_argument(model: PreTrainedModel) -> str | None:
    """The name under which the model's forward takes its cache."""
    return next((name for name in ARGUMENT_NAMES if takes_argument(model, name)), None)


def takes_argument(model: PreTrainedModel, name: str) -> bool:
    return name in inspect.signature(model.forward).parameters


def cache_of(inputs: DecoderInputs) -> Any | None:
    """The cache that the model's forward made or was given, if it hands the same one to every block."""
    found = []
    for call in inputs.calls:
        values = (*call.args, *call.kwargs.values())
        found.append(next((value for value in values if isinstance(value, Cache)), None))
    return found[0] if all(cache is found[0] for cache in found) else None


def keeps_keys_and_values(decoder: Decoder) -> bool:
    """Whether the model's own forward makes a cache for its blocks; without one, generation computes prefixes anew."""
    if cache_argument(decoder.model) is None:
        return False
    zero = torch.zeros((), device=decoder.device)
    shell = {name: zero.expand(shape) for name, shape in decoder.shell_shapes.items()}  # takes no memory
    rows = torch.zeros(1, decoder.embedding_width, device=decoder.device)
    ids = torch.zeros(1, 2, dtype=torch.int64, device=decoder.device)
    with torch.no_grad(), decoder.without_dropout():
        return cache_of(decoder.enter(ids, rows, ids, shell, seed=0, use_cache=True)) is not None


def cached_bytes(cache: Any, layer: int) -> int:
    """Memory of one layer of a cache: keys and values, or a recurrent state."""
    return sum(_tensor_bytes(value) for value in vars(cache.layers[layer]).values())


def _tensor_bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(_tensor_bytes, parts))
