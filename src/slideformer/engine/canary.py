"""Whether documents of a packed row see each other: two of three are changed, and the one between must not notice."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from slideformer.errors import UnsupportedModel
from slideformer.models.architecture import Decoder
from slideformer.models.packed_attention import PADDED, Documents

LENGTHS = (7, 9, 8)  # longer than a tiny model's convolutions, and partly than its attention windows
MIDDLE = slice(7, 16)
NOTICEABLE = 1e-4  # of the largest value; the order in which experts meet tokens changes rounding, no more


def refuse_leaks(decoder: Decoder, weights: Mapping[str, Tensor]) -> None:
    """Run a small packed decoder on the CPU over rows that differ outside the middle document.

    Attention through transformers' interface keeps documents apart. State-space mixers, linear attention, convolutions
    and attention code of a model's own do not, and nothing in their names says so: hence an experiment.

    Args:
        weights: every parameter of the model by its name, fp32.

    Raises:
        UnsupportedModel: something of another document arrives; names the place.
    """
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randint(1, decoder.vocabulary, (2, 1, sum(LENGTHS)), generator=generator).unbind()
    other[:, MIDDLE] = one[:, MIDDLE]
    with decoder.without_dropout(), torch.no_grad():
        for (place, x), (_, y) in zip(_states(decoder, weights, one), _states(decoder, weights, other), strict=True):
            difference = float(decoder.boundary.by_token(x - y)[MIDDLE].abs().max() / x.abs().max())
            if not difference <= NOTICEABLE:
                raise UnsupportedModel(
                    f"packing: {place} carries something from one document of a row to another (state-space mixers, "
                    "linear attention, convolutions and attention outside transformers' interface do)",
                    PADDED,
                )


def _states(decoder: Decoder, weights: Mapping[str, Tensor], ids: Tensor) -> Iterator[tuple[str, Tensor]]:
    """(place, hidden states) before the first block and behind each."""
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0)
    shell = {name: weights[name] for name in decoder.shell_shapes}
    inputs = decoder.enter(ids, weights[decoder.embedding_name], ids, shell, 0, Documents(positions, bounds, LENGTHS))
    x = inputs.hidden
    yield "the embedding", x
    for i, (name, block) in enumerate(zip(decoder.block_names, decoder.blocks, strict=True)):
        own = {parameter: weights[f"{name}.{parameter}"] for parameter in decoder.block_shapes(i)}
        try:
            x = decoder.block(i, own, x, inputs, seed=0)
        except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
            raise UnsupportedModel(f"packing: {_described(block)} fails on packed rows: {error}", PADDED) from error
        yield _described(block), x


def _described(block: nn.Module) -> str:
    """The block's class and what it is made of."""
    parts = dict.fromkeys(type(child).__name__ for child in block.children())
    return f"{type(block).__name__} ({', '.join(parts)})"
