"""Held-out records: a part of the training data, drawn once by seed."""

from dataclasses import replace

import numpy as np
import torch

from slideformer.data.examples import Examples
from slideformer.data.load import LoadedData
from slideformer.data.mixture import Mixture
from slideformer.errors import DataError

DRAW = 0x4E1D  # with the seed: another stream of random numbers than the order of an epoch


def hold_out(data: LoadedData, size: float, seed: int) -> tuple[LoadedData, Examples]:
    """Split into (what is trained on, what is held out), of every source the same share.

    Args:
        size: a share of the examples below 1, or how many.
        seed: which ones; the same whatever the number of epochs.

    Raises:
        DataError: nothing would be left on one of the sides.
    """
    counts = data.mixture.counts
    share = size if size < 1 else size / sum(counts)
    held = [min(round(count * share), count - 1) for count in counts]
    if share >= 1 or not sum(held):
        raise DataError(
            f"eval_size = {size:g} of {sum(counts)} records holds out {'all' if share >= 1 else 'none'} of them",
            "set eval_size to a share such as 0.05, or to a number of records",
        )
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    orders = [np.random.default_rng([seed, DRAW, k]).permutation(count) for k, count in enumerate(counts)]
    drawn = [start + order for start, order in zip(starts, orders, strict=True)]
    chosen = np.sort(np.concatenate([part[:k] for part, k in zip(drawn, held, strict=True)]))
    left = np.sort(np.concatenate([part[k:] for part, k in zip(drawn, held, strict=True)]))
    remaining = [count - k for count, k in zip(counts, held, strict=True)]
    mixture = Mixture(remaining, data.mixture.weights)
    return replace(data, examples=take(data.examples, left), mixture=mixture), take(data.examples, chosen)


def take(examples: Examples, positions: np.ndarray) -> Examples:
    """The examples at `positions`, in that order, copied."""
    chosen = [examples[int(i)] for i in positions]
    lengths = torch.tensor([0, *(len(example.input_ids) for example in chosen)], dtype=torch.int64)
    return Examples(
        torch.cat([example.input_ids for example in chosen]),
        torch.cat([example.labels for example in chosen]),
        lengths.cumsum(0),
        torch.tensor([example.index for example in chosen], dtype=torch.int64),
    )


def longest_first(examples: Examples) -> Examples:
    """Sorted by length, so that a batch holds little padding."""
    order = torch.argsort(examples.lengths, descending=True, stable=True)
    return take(examples, order.numpy())
