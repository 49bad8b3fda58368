"""Which steps count for the bias correction of a layer's parameters, and so what an update of the layer consists of."""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace

from slideformer.layout import FlatLayout
from slideformer.optim.adamw import AdamWStep

Spans = list[tuple[int, int, bool]]


class StepCounts:
    """Steps that brought a layer's parameters no gradient.

    Attributes:
        missed: parameter -> steps in which no gradient reached it, or that were left out. As in PyTorch, where `.grad`
            is then None, such a step leaves it and its moments alone and does not count for its bias correction.
    """

    def __init__(self, layout: FlatLayout):
        self._layout = layout
        self.missed: Counter[str] = Counter()

    def due(self, reached: Collection[str], hyper: AdamWStep) -> Iterator[tuple[Spans, AdamWStep]]:
        """The runs of elements to update when a gradient reached these parameters, each with the steps that count."""
        unreached = [field.name for field in self._layout.trained_fields if field.name not in reached]
        if not unreached and len(self._counts()) <= 1:
            yield self._layout.decay_spans(), self.counted(hyper)
            return
        self.missed.update(unreached)
        by_missed: dict[int, list[str]] = {}
        for name in reached:
            by_missed.setdefault(self.missed.get(name, 0), []).append(name)
        for missed, names in by_missed.items():
            yield self._layout.decay_spans(among=names), replace(hyper, missed=missed)

    def skip(self) -> None:
        """A step was left out: it counts for no parameter."""
        self.missed.update(field.name for field in self._layout.trained_fields)

    def counted(self, hyper: AdamWStep) -> AdamWStep:
        """`hyper` with the steps that count, for a layer whose parameters all missed the same ones."""
        return replace(hyper, missed=max(self._counts(), default=0))

    def _counts(self) -> set[int]:
        return {self.missed[field.name] for field in self._layout.trained_fields} if self.missed else set()
