"""Whether a model's head can pass in shards: found by experiment on a tiny copy, on the CPU."""

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from slideformer.models.architecture import Decoder
from slideformer.models.tiny import shrink

TOKENS, SHARDS = 5, 3


def head_shards_exactly(config: PreTrainedConfig, trust_remote_code: bool = False) -> bool:
    """Whether what the model does behind its head treats every entry of the vocabulary alike, as a scale, a soft-cap or
    a bias does: the logits of a part of the vocabulary are then that part of the logits.

    Whatever the model's own code raises over a part is a no: the whole head is always right.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            return _same_logits(Decoder(shrink(config), torch.device("cpu"), trust_remote_code=trust_remote_code))
    except Exception:
        return False


def _same_logits(decoder: Decoder) -> bool:
    shell = {name: torch.randn(shape) for name, shape in decoder.shell_shapes.items()}
    weight, hidden = torch.randn(decoder.head_shape), torch.randn(decoder.boundary.of(TOKENS, 1))
    whole = decoder.tail.logits(hidden, weight, None, shell)
    head_input = decoder.tail.head_input(hidden, shell)
    parts: list[Tensor] = []
    for first, part in zip(_starts(weight), weight.split(_rows(weight)), strict=True):
        parts.append(decoder.tail.shard_logits(lambda part=part: head_input @ part.mT, part, first, TOKENS, shell))
    return torch.allclose(torch.cat(parts, dim=-1), whole, rtol=1e-5, atol=1e-5)


def _rows(weight: Tensor) -> int:
    return -(-len(weight) // SHARDS)


def _starts(weight: Tensor) -> range:
    return range(0, len(weight), _rows(weight))
