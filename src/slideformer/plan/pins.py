"""Choices of the plan that a person makes instead."""

from dataclasses import dataclass, fields, replace
from typing import Any

from slideformer.plan.sizes import Sizes

COUNTS_OF_BLOCKS = ("kept_outputs", "host_boundaries", "disk_blocks", "gradient_slots")


@dataclass(frozen=True)
class Pins:
    """Sizes that are given, by the names that they have in `Sizes`; None: chosen."""

    resident_ends: bool | None = None
    kept_outputs: int | None = None
    host_boundaries: int | None = None
    disk_blocks: int | None = None
    gradient_slots: int | None = None
    head_shards: int | None = None

    @classmethod
    def named_in(cls, settings: Any) -> "Pins":
        """From an object that has attributes of these names."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})

    def given(self) -> dict[str, int]:
        return {name: value for name, value in vars(self).items() if value is not None}

    def of(self, sizes: Sizes, blocks: int) -> Sizes:
        """The sizes with what is given in the place of what was chosen; of blocks, at most as many as there are."""
        given = self.given()
        return replace(sizes, **given | {key: min(given[key], blocks) for key in COUNTS_OF_BLOCKS if key in given})
