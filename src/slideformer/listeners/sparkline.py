"""A curve of any length as one line of text."""

import math
from itertools import pairwise

BLOCKS = "▁▂▃▄▅▆▇█"


class Curve:
    """Values in order, averaged over ever wider spans so that a long run takes no more memory than a short one.

    Args:
        most: points that are kept, an even number.
    """

    def __init__(self, most: int = 512):
        self._most = most
        self._span = 1  # values a point stands for
        self._means: list[float] = []
        self._open: list[float] = []

    def add(self, value: float) -> None:
        """One more value; one that is not finite is left out."""
        if not math.isfinite(value):
            return
        self._open.append(value)
        if len(self._open) == self._span:
            self._means.append(_mean(self._open))
            self._open = []
        if len(self._means) == self._most:
            self._means = [_mean(self._means[i : i + 2]) for i in range(0, self._most, 2)]
            self._span *= 2

    def draw(self, width: int) -> str:
        """At most `width` characters, the highest value the tallest."""
        points = self._means + ([_mean(self._open)] if self._open else [])
        count = min(width, len(points))
        cuts = [len(points) * i // count for i in range(count + 1)] if count else []
        means = [_mean(points[start:stop]) for start, stop in pairwise(cuts)]
        return "".join(_block(mean, min(means), max(means)) for mean in means)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _block(value: float, lowest: float, highest: float) -> str:
    if highest == lowest:
        return BLOCKS[0]
    return BLOCKS[round((value - lowest) / (highest - lowest) * (len(BLOCKS) - 1))]
