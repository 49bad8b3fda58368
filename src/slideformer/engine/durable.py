"""Every unit's durable state, in host memory or with a record on disk, as the plan says."""

from collections.abc import Mapping
from pathlib import Path

import torch

from slideformer.errors import ConfigError
from slideformer.layout import FlatLayout
from slideformer.memory.disk_state import (
    BUFFERS,
    AllInMemory,
    DiskState,
    DurableState,
    RecordRing,
    record_bytes,
    resident_parts,
)
from slideformer.memory.host import HostAllocator, LayerState
from slideformer.optim.rounding import Rounding


def durable_states(
    layouts: Mapping[str, FlatLayout],
    on_disk: list[str],
    offload_dir: Path | None,
    dtype: torch.dtype,
    allocator: HostAllocator,
    pin_lo: bool,
    threads: int,
    moment_dtype: torch.dtype = torch.float32,
    seed: int = 0,
    disk_buffers: int = BUFFERS,
) -> tuple[dict[str, DurableState], RecordRing | AllInMemory]:
    """States by unit, in the order of `layouts`, and what brings those from the disk.

    Args:
        on_disk: units of which the disk holds what the device does not fetch.
        dtype: what the device computes in.
        moment_dtype: of the optimizer's moments; with bfloat16, `seed` draws their rounding.
        disk_buffers: records that are in memory at once.

    Raises:
        ConfigError: something is to be on disk, and `offload_dir` is None.
        DiskError: there is no room in it.
    """
    if on_disk and offload_dir is None:
        raise ConfigError(f"{len(on_disk)} blocks are to be on disk, but there is no directory", "set offload_dir")
    records: RecordRing | AllInMemory = AllInMemory()
    if on_disk and offload_dir is not None:
        sizes = {unit: record_bytes(layouts[unit], dtype, moment_dtype) for unit in on_disk}
        records = RecordRing(offload_dir, sizes, allocator, disk_buffers)
    resident = resident_parts(dtype)

    def state_of(number: int, unit: str, layout: FlatLayout) -> DurableState:
        moments = (moment_dtype, Rounding(seed, number))
        if isinstance(records, RecordRing) and unit in on_disk:
            return DiskState(unit, layout, allocator, records, pin_lo, threads, resident, *moments)
        return LayerState(unit, layout, allocator, pin_lo, threads, *moments)

    return {unit: state_of(k, unit, layout) for k, (unit, layout) in enumerate(layouts.items())}, records
