"""One flat vector <-> the named parameters of a layer."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import prod

from torch import Tensor

ALIGN_ELEMENTS = 128  # 256 bytes in bf16: matmul kernels pick the same algorithm for every slot


@dataclass(frozen=True)
class Field:
    """A parameter's place in the flat vector: elements [start, start + numel)."""

    name: str
    shape: tuple[int, ...]
    start: int
    decay: bool
    trained: bool = True

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def stop(self) -> int:
        return self.start + self.numel


class FlatLayout:
    """Where each parameter of a layer lies in one flat vector: what is trained first, in one piece, then the frozen.

    Args:
        shapes: parameter name -> shape, in the order in which they are laid out.
        no_decay: names whose values weight decay leaves alone.
        frozen: names that are not trained.

    Attributes:
        numel: elements of the vector, padded.
        trained_numel: elements of its trained part, padded: those of gradients and moments.
    """

    def __init__(self, shapes: Mapping[str, Iterable[int]], no_decay: Iterable[str] = (), frozen: Collection[str] = ()):
        undecayed = set(no_decay)
        self.fields: dict[str, Field] = {}
        self.numel = self.trained_numel = 0
        for name in sorted(shapes, key=lambda name: name in frozen):
            field = Field(name, tuple(shapes[name]), self.numel, name not in undecayed, name not in frozen)
            self.fields[name] = field
            self.numel = -(-field.stop // ALIGN_ELEMENTS) * ALIGN_ELEMENTS
            if field.trained:
                self.trained_numel = self.numel
        self.parameter_count = sum(field.numel for field in self.fields.values())

    @property
    def trained_fields(self) -> list[Field]:
        return [field for field in self.fields.values() if field.trained]

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of `flat` [numel], one per parameter, in its shape."""
        return {f.name: flat[f.start : f.stop].view(f.shape) for f in self.fields.values()}

    def gradient_views(self, flat: Tensor) -> list[Tensor]:
        """Views of a gradient `flat` [trained_numel], one per trained parameter, in its shape."""
        return [flat[f.start : f.stop].view(f.shape) for f in self.trained_fields]

    def padding_views(self, flat: Tensor) -> list[Tensor]:
        """Views of the elements of a gradient `flat` [trained_numel] between the parameters, where they exist."""
        return [flat[f.stop : end] for f, end in self._padded_fields() if f.trained and f.stop < end]

    def decay_spans(self, among: Collection[str] | None = None) -> list[tuple[int, int, bool]]:
        """The trained part as (start, stop, decayed) runs, adjacent fields of one kind merged (padding included).

        Args:
            among: only of these parameters.
        """
        spans: list[tuple[int, int, bool]] = []
        for field, stop in self._padded_fields():
            if not field.trained or (among is not None and field.name not in among):
                continue
            if spans and spans[-1][1:] == (field.start, field.decay):
                spans[-1] = (spans[-1][0], stop, field.decay)
            else:
                spans.append((field.start, stop, field.decay))
        return spans

    def _padded_fields(self) -> list[tuple[Field, int]]:
        """Each field, and where its padding ends."""
        fields = list(self.fields.values())
        starts = [field.start for field in fields]
        return list(zip(fields, [*starts, self.numel][1:], strict=True))
