"""Which examples an epoch holds, and in which order: a function of the seed and the epoch alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mixture:
    """Sources that stand one behind the other in the list of examples.

    Attributes:
        counts: examples of each source.
        weights: how often an example of each source is seen in an epoch, on average; a fraction takes a part of the
            source, and the following epochs go on with the rest, so that every example is seen equally often.
    """

    counts: Sequence[int]
    weights: Sequence[float]

    @property
    def draws(self) -> list[int]:
        """Examples that an epoch takes of each source, at least one."""
        return [max(1, round(count * weight)) for count, weight in zip(self.counts, self.weights, strict=True)]

    def order(self, epoch: int, *, shuffle: bool, seed: int) -> np.ndarray:
        """The positions of an epoch's examples, int64; unshuffled, source behind source."""
        starts = np.concatenate([[0], np.cumsum(self.counts)[:-1]])
        parts = [start + self._drawn(source, epoch, seed if shuffle else None) for source, start in enumerate(starts)]
        order = np.concatenate(parts).astype(np.int64)
        if shuffle:
            # Not torch.randperm: its CPU generator keeps only the low 32 bits of a seed.
            np.random.default_rng([seed, epoch]).shuffle(order)
        return order

    def _drawn(self, source: int, epoch: int, seed: int | None) -> np.ndarray:
        """Positions within a source: draw number d of all epochs is place d % count of pass d // count over it."""
        count, draws = self.counts[source], self.draws[source]
        first, last = epoch * draws, (epoch + 1) * draws
        passes = [
            _pass(count, source, number, seed, whole=draws % count == 0)
            for number in range(first // count, -(-last // count))
        ]
        offset = first - first // count * count
        return np.concatenate(passes)[offset : offset + draws]


def _pass(count: int, source: int, number: int, seed: int | None, whole: bool) -> np.ndarray:
    if seed is None or whole:  # epochs of whole passes are shuffled anyway
        return np.arange(count)
    return np.random.default_rng([seed, number, source]).permutation(count)
