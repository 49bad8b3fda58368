"""Which choices a person made, and where they cannot be made."""

from slideformer.errors import ConfigError
from slideformer.plan.pins import ON_DISK
from slideformer.plan.plan import Workload

ON_THE_GPU = ("resident", "resident_ends")


def pinned(workload: Workload) -> dict[str, int]:
    """All choices that are given, by the names of their settings."""
    names = ("micro_batch_size", "window_depth", "resident", "kept")
    given = {name: getattr(workload, name) for name in names}
    return {name: value for name, value in given.items() if value is not None} | workload.pins.given()


def check_pins(workload: Workload, blocks: int, *, can_be_resident: bool, can_be_sharded: bool, has_disk: bool) -> None:
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
    for name in ("kept", "kept_outputs", "host_outputs"):
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
