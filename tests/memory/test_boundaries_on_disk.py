"""Boundaries on disk come back as they were saved, in shapes of any size that fits, at any timing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from slideformer.lanes.fuzzer import fuzzed_lanes
from slideformer.lanes.lanes import Lanes, inline_lanes
from slideformer.memory.activations import ActivationStore
from slideformer.memory.boundaries_on_disk import BoundariesOnDisk, boundary_records
from slideformer.memory.host import HostAllocator
from slideformer.storage.disk import DiskFile

LAYERS, MICRO_BATCHES, ELEMENTS = 5, 2, 3000
NAMES = [f"layer {i}" for i in range(LAYERS)]
SHAPES = [torch.Size((2, 4, 300)), torch.Size((1, 5, 3))]
DTYPE = torch.float32


@contextmanager
def new_store(directory: Path, lanes: Lanes, on_disk: int, on_host: int, buffers: int) -> Iterator[ActivationStore]:
    allocator, size = HostAllocator(pin=False), ELEMENTS * DTYPE.itemsize
    file = DiskFile(directory, boundary_records(NAMES[:on_disk], MICRO_BATCHES, size), "boundary activations")
    boundaries = BoundariesOnDisk(file, NAMES[:on_disk], MICRO_BATCHES, size, allocator, buffers)
    layers = range(on_disk + on_host)
    store = ActivationStore(lanes, allocator, layers, MICRO_BATCHES, ELEMENTS, DTYPE, boundaries)
    expected = BoundariesOnDisk.host_bytes_needed(on_disk, MICRO_BATCHES, size, buffers)
    expected += ActivationStore.host_bytes_needed(on_host, MICRO_BATCHES, ELEMENTS, DTYPE.itemsize)
    assert allocator.allocated_bytes == {"activations": expected}
    yield store
    file.close()


def value(step: int, i: int, m: int) -> torch.Tensor:
    return torch.full(SHAPES[(m + step) % 2], 100.0 * step + 10 * i + m)


def round_trip(lanes: Lanes, store: ActivationStore, step: int) -> None:
    """Save every boundary in forward order, load them in backward order, compare."""
    for i in range(LAYERS):
        for m in range(MICRO_BATCHES):
            store.save(i, m, lanes.compute.run(value, step, i, m), value(step, i, m).shape)
    order = [(i, m) for i in reversed(range(LAYERS)) for m in range(MICRO_BATCHES)]
    store.turn(order)
    copies = []
    for i, m in order:
        copies.append(torch.empty(value(step, i, m).shape))
        lanes.compute.run(lambda x, copy=copies[-1]: copy.copy_(x), store.load(i, m))
        store.release(i, m)
    lanes.compute.record().wait()
    for (i, m), copy in zip(order, copies, strict=True):
        assert torch.equal(copy, value(step, i, m)), (i, m)


@pytest.mark.parametrize("buffers", [1, 2, 4, 99])
@pytest.mark.parametrize(("on_disk", "on_host"), [(1, 0), (2, 2), (LAYERS, 0)])
def test_boundaries_come_back_as_they_were(on_disk: int, on_host: int, buffers: int, tmp_path: Path):
    lanes = inline_lanes(torch.device("cpu"))
    with new_store(tmp_path, lanes, on_disk, on_host, buffers) as store:
        for step in range(3):
            round_trip(lanes, store, step)


@pytest.mark.parametrize("buffers", [1, 3])
def test_and_at_any_timing(buffers: int, tmp_path: Path):
    for seed in range(20):
        lanes, _ = fuzzed_lanes(seed)
        with new_store(tmp_path, lanes, 3, 1, buffers) as store:
            for step in range(2):
                round_trip(lanes, store, step)


def test_a_buffer_for_each_is_enough():
    assert BoundariesOnDisk.host_bytes_needed(1, 2, 4096, 4) == 2 * 4096
    assert BoundariesOnDisk.host_bytes_needed(3, 2, 4096, 4) == 4 * 4096
    assert BoundariesOnDisk.host_bytes_needed(0, 2, 4096, 4) == 0
