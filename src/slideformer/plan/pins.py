"""Choices of the plan that a person makes instead, and where they cannot be made."""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from slideformer.errors import ConfigError
from slideformer.plan.sizes import Sizes

if TYPE_CHECKING:
    from slideformer.plan.plan import Workload

ON_DISK = ("disk_blocks", "disk_boundaries", "disk_weight_blocks")
COUNTS_OF_BLOCKS = ("kept_outputs", "host_boundaries", "gradient_slots", *ON_DISK)
ON_THE_GPU = ("resident", "resident_ends")


@dataclass(frozen=True)
class Pins:
    """Sizes that are given, by the names that they have in `Sizes`; None: chosen."""

    resident_ends: bool | None = None
    kept_outputs: int | None = None
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
        return {name: value for name, value in vars(self).items() if value is not None}

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


def pinned(workload: "Workload") -> dict[str, int]:
    """All choices that are given, by the names of their settings."""
    names = ("micro_batch_size", "window_depth", "resident", "kept")
    given = {name: getattr(workload, name) for name in names}
    return {name: value for name, value in given.items() if value is not None} | workload.pins.given()


def check_pins(
    workload: "Workload", blocks: int, *, can_be_resident: bool, can_be_sharded: bool, has_disk: bool
) -> None:
    """Refuse what no budget would make possible.

    Args:
        blocks: of the model.
        can_be_resident: layers compute in bf16 on a device.
        can_be_sharded: the logits of a shard of the vocabulary are a slice of the whole head's.
        has_disk: there is a directory for states.

    Raises:
        ConfigError: with the setting and what is in its way.
    """
    given = pinned(workload)
    for name in ON_THE_GPU:
        if given.get(name) and not can_be_resident:
            raise ConfigError(
                f"{name}: {_word(given[name])}, but only what computes in bf16 on a GPU can be updated where it is",
                f"leave {name} out, or set compute_dtype: bf16 and device: cuda",
            )
    for name in ("kept", "kept_outputs"):
        if given.get(name) and workload.recompute_all:
            raise ConfigError(
                f"{name}: {given[name]}, but gradient_checkpointing: true recomputes every layer",
                "keep one of the two",
            )
    for name in ON_DISK:
        if given.get(name) and not has_disk:
            raise ConfigError(
                f"{name}: {given[name]}, but there is no disk for them",
                "set budget.offload_dir to a directory on a fast local disk",
            )
    resident, on_disk = given.get("resident", 0), given.get("disk_blocks", 0)
    if resident and on_disk and resident + on_disk > blocks:
        raise ConfigError(
            f"resident: {resident} and disk_blocks: {on_disk} are more than the {blocks} blocks",
            "a block's state is in one place: make the sum at most the number of blocks",
        )
    if "gradient_slots" in given and workload.clipping:
        raise ConfigError(
            f"gradient_slots: {given['gradient_slots']}, but with clipping all gradients wait for their norm",
            "leave gradient_slots out, or set max_grad_norm: null",
        )
    if given.get("head_shards", 1) > 1 and not can_be_sharded:
        raise ConfigError(
            f"head_shards: {given['head_shards']}, but a shard of this head gives no slice of the model's logits",
            "leave head_shards out",
        )


def _word(value: int) -> str:
    return "true" if value is True else str(value)
