"""Choices of the plan that a person makes instead."""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from slideformer.plan.sizes import Sizes

AUTO = "auto"
ON_DISK = ("disk_blocks", "disk_boundaries", "disk_weight_blocks")
COUNTS_OF_BLOCKS = ("kept_outputs", "host_boundaries", "gradient_slots", *ON_DISK)


@dataclass(frozen=True)
class Pins:
    """Sizes that are given, by the names that they have in `Sizes`; None: chosen. Of `host_outputs`, None is none, and
    "auto" is chosen."""

    resident_ends: bool | None = None
    kept_outputs: int | None = None
    host_outputs: int | Literal["auto"] | None = None
    host_boundaries: int | None = None
    disk_blocks: int | None = None
    disk_boundaries: int | None = None
    disk_weight_blocks: int | None = None
    gradient_slots: int | None = None
    head_shards: int | None = None

    @classmethod
    def named_in(cls, settings: Any) -> "Pins":
        """From an object that has attributes of these names."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})

    def given(self) -> dict[str, int]:
        return {name: value for name, value in vars(self).items() if value not in (None, AUTO)}

    def of(self, sizes: Sizes, blocks: int) -> Sizes:
        """The sizes with what is given in the place of what was chosen; of blocks, at most as many as there are."""
        given = self.given()
        found = replace(sizes, **given | {key: min(given[key], blocks) for key in COUNTS_OF_BLOCKS if key in given})
        if self.disk_blocks is None:  # weights are on disk beside their block's state
            return replace(found, disk_blocks=max(found.disk_blocks, self.disk_weight_blocks or 0))
        return replace(found, disk_weight_blocks=min(found.disk_weight_blocks, found.disk_blocks))

    @property
    def on_disk(self) -> bool:
        """Whether it is given how much of something is on disk."""
        return any(getattr(self, name) is not None for name in ON_DISK)
