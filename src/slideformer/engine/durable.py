"""Every unit's durable state, in host memory, with a record on disk or on the device, as the plan says."""

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch

from slideformer.errors import ConfigError
from slideformer.layout import FlatLayout
from slideformer.memory.device_state import DeviceState, WayOut
from slideformer.memory.disk_state import DiskState, fetched_parts, record_bytes, spread, weight_bytes
from slideformer.memory.host import HostAllocator, LayerState
from slideformer.memory.record_ring import BUFFERS, AllInMemory, RecordRing
from slideformer.models.architecture import Decoder
from slideformer.optim.rounding import Rounding
from slideformer.plan.footprint import boundaries_on_disk
from slideformer.plan.sizes import Sizes
from slideformer.storage.disk import DiskFile
from slideformer.streams import Lanes

DurableState = LayerState | DiskState | DeviceState


def durable_states(
    layouts: Mapping[str, FlatLayout],
    on_disk: list[str],
    on_device: Collection[str],
    lanes: Lanes,
    offload_dir: Path | None,
    dtype: torch.dtype,
    allocator: HostAllocator,
    pin_lo: bool,
    threads: int,
    moment_dtype: torch.dtype = torch.float32,
    seed: int = 0,
    disk_buffers: int = BUFFERS,
    disk_weights: int = 0,
) -> tuple[dict[str, DurableState], RecordRing | AllInMemory]:
    """States by unit, in the order of `layouts`, and what brings those from the disk.

    Args:
        on_disk: units of which the disk holds what the device does not fetch.
        disk_weights: how many of these have their weights there, too.
        on_device: units whose whole state is in the device's memory; none of them is on disk.
        dtype: what the device computes in.
        moment_dtype: of the optimizer's moments; with bfloat16, `seed` draws their rounding.
        disk_buffers: records that are in memory at once.

    Raises:
        ConfigError: something is to be on disk, and `offload_dir` is None; or on the device, which does not compute
            in bfloat16.
        DiskError: there is no room in it.
    """
    if on_disk and offload_dir is None:
        raise ConfigError(f"{len(on_disk)} blocks are to be on disk, but there is no directory", "set offload_dir")
    if on_device and dtype != torch.bfloat16:
        raise ConfigError(
            f"{len(on_device)} units are to be resident, whose weights are bfloat16, and computing is in {dtype}",
            "set compute_dtype: bf16, or resident: 0",
        )
    records: RecordRing | AllInMemory = AllInMemory()
    with_weights = spread(on_disk, disk_weights)
    if on_disk and offload_dir is not None:
        sizes_on_disk = {unit: record_bytes(layouts[unit], dtype, moment_dtype) for unit in on_disk}
        weights = {unit: weight_bytes(layouts[unit], dtype) for unit in with_weights}
        records = RecordRing(offload_dir, sizes_on_disk, allocator, disk_buffers, weights)
    fetched = fetched_parts(dtype)
    sizes = [LayerState.bytes_needed(layouts[unit], moment_dtype) for unit in on_device]
    way_out = WayOut(allocator, sizes, threads) if sizes else None

    def state_of(number: int, unit: str, layout: FlatLayout) -> DurableState:
        moments = (moment_dtype, Rounding(seed, number))
        if way_out is not None and unit in on_device:
            return DeviceState(unit, layout, lanes, way_out, *moments)
        if isinstance(records, RecordRing) and unit in on_disk:
            memory = (allocator, records, pin_lo, threads, fetched)
            return DiskState(unit, layout, *memory, *moments, weights_on_disk=unit in with_weights)
        return LayerState(unit, layout, allocator, pin_lo, threads, *moments)

    with ExitStack() as opened:
        opened.callback(records.close)
        states = {unit: state_of(k, unit, layout) for k, (unit, layout) in enumerate(layouts.items())}
        opened.pop_all()
    return states, records


def boundary_file_in(offload_dir: Path | None, decoder: Decoder, sizes: Sizes, dtype: torch.dtype) -> DiskFile | None:
    """Room for the boundary activations that are to be on disk; None if none are.

    Raises:
        ConfigError: `offload_dir` is None.
        DiskError: there is no room in it.
    """
    records = boundaries_on_disk(decoder.block_names, sizes, decoder.hidden, dtype)
    if not records:
        return None
    if offload_dir is None:
        raise ConfigError(f"{len(records)} boundaries are to be on disk, but there is no directory", "set offload_dir")
    return DiskFile(offload_dir, records, "boundary activations")
