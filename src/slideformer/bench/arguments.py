"""What `slideformer bench` and `slideformer trace` can be told about memory and about the plan."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from annotated_types import Ge
from pydantic.fields import FieldInfo

from slideformer.settings.config import Config
from slideformer.units import parse_bytes

PINNED = (
    "micro_batch_size", "window_depth", "resident", "resident_ends", "kept", "kept_outputs", "host_outputs",
    "host_boundaries", "disk_blocks", "disk_boundaries", "disk_weight_blocks", "gradient_slots", "head_shards",
)  # fmt: skip


def add_memory_options(command: argparse.ArgumentParser) -> None:
    """Budgets, and the plan's choices, named as the settings of a run."""
    memory = command.add_argument_group("memory")
    memory.add_argument("--host-budget", type=size, metavar="SIZE", help="host memory (default: what is free)")
    memory.add_argument("--offload-dir", type=Path, metavar="DIR", help="on a fast local disk, for offloaded states")
    memory.add_argument("--disk-budget", type=size, metavar="SIZE", help="room for them (default: what is free)")
    memory.add_argument("--optimizer-state", choices=("fp32", "bf16"), default="fp32", help="type of AdamW's moments")
    pins = command.add_argument_group("choices of the plan that you make instead")
    for name in PINNED:
        _add_pin(pins, name, Config.model_fields[name])


def case_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of a `Case` but `sequences` and `gpu_budget_bytes`, which `bench` has several of."""
    same = ("model", "length", "steps", "warm_up", "device", "threads", "optimizer_state", *PINNED)
    return {name: getattr(arguments, name) for name in same} | {
        "clipping": arguments.clip,
        "host_budget_bytes": arguments.host_budget,
        "disk_budget_bytes": arguments.disk_budget,
        "offload_dir": str(arguments.offload_dir) if arguments.offload_dir else None,
    }


def _add_pin(group: "argparse._ArgumentGroup", name: str, field: FieldInfo) -> None:
    words = (field.description or "").partition("; null: ")[0]
    least = next((bound.ge for bound in field.metadata if isinstance(bound, Ge)), 0)
    flag = field.annotation == bool | None
    kind = _true_or_false if flag else partial(_count, least)  # type: ignore[arg-type]  # bounds of counts are numbers
    kind = count_or_auto if name == "host_outputs" else kind
    group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="BOOL" if flag else "N", help=words)


def size(text: str) -> int:
    """Bytes; for argparse."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def size_or_none(text: str) -> int | None:
    """The same; "none" is no budget."""
    return None if text.lower() == "none" else size(text)


def _count(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} on")
    return int(text)


def count_or_auto(text: str) -> int | str:
    """For argparse."""
    return text if text == "auto" else _count(0, text)


def _true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"
