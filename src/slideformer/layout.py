"""One flat vector <-> the named parameters of a layer."""

from collections.abc import Iterable, Mapping
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

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def stop(self) -> int:
        return self.start + self.numel


class FlatLayout:
    """Where each parameter of a layer lies in one flat vector.

    Args:
        shapes: parameter name -> shape, in the order in which they are laid out.
        no_decay: names whose values weight decay leaves alone.
    """

    def __init__(self, shapes: Mapping[str, Iterable[int]], no_decay: Iterable[str] = ()):
        undecayed = set(no_decay)
        self.fields: dict[str, Field] = {}
        start = 0
        for name, shape in shapes.items():
            field = Field(name, tuple(shape), start, name not in undecayed)
            self.fields[name] = field
            start = -(-field.stop // ALIGN_ELEMENTS) * ALIGN_ELEMENTS
        self.numel = start  # padded
        self.parameter_count = sum(field.numel for field in self.fields.values())

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of `flat` [numel], one per parameter, in its shape."""
        return {f.name: flat[f.start : f.stop].view(f.shape) for f in self.fields.values()}

    def padding_views(self, flat: Tensor) -> list[Tensor]:
        """Views of the elements of `flat` [numel] between the parameters, where they exist."""
        return [flat[f.stop : end] for f, end in self._padded_fields() if f.stop < end]

    def decay_spans(self) -> list[tuple[int, int, bool]]:
        """The vector as (start, stop, decayed) runs, adjacent fields of one kind merged (padding included)."""
        spans: list[tuple[int, int, bool]] = []
        for field, stop in self._padded_fields():
            if spans and spans[-1][2] == field.decay:
                spans[-1] = (spans[-1][0], stop, field.decay)
            else:
                spans.append((field.start, stop, field.decay))
        return spans

    def same_as(self, other: "FlatLayout") -> bool:
        """Whether both lay the same shapes at the same places."""
        return list(self.fields.values()) == list(other.fields.values())

    def _padded_fields(self) -> list[tuple[Field, int]]:
        """Each field, and where its padding ends."""
        fields = list(self.fields.values())
        starts = [field.start for field in fields]
        return list(zip(fields, [*starts, self.numel][1:], strict=True))
