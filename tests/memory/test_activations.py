"""Boundaries come back as they were saved, from the device or from host memory, in any shape that fits."""

import pytest
import torch

from slideformer.lanes.fuzzer import fuzzed_lanes
from slideformer.lanes.lanes import Lanes, inline_lanes
from slideformer.memory.activations import ActivationStore
from slideformer.memory.host import HostAllocator

LAYERS, MICRO_BATCHES, ELEMENTS = 4, 2, 24
SHAPES = [torch.Size((2, 4, 3)), torch.Size((1, 5, 3))]


def value(step: int, i: int, m: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full(SHAPES[m], 100.0 * step + 10 * i + m).to(dtype)


def new_store(lanes: Lanes, host_layers: int, dtype: torch.dtype = torch.float32) -> ActivationStore:
    allocator = HostAllocator(pin=False)
    store = ActivationStore(lanes, allocator, range(host_layers), MICRO_BATCHES, ELEMENTS, dtype)
    expected = ActivationStore.host_bytes_needed(host_layers, MICRO_BATCHES, ELEMENTS, dtype.itemsize)
    assert allocator.allocated_bytes.get("activations", 0) == expected
    return store


def round_trip(lanes: Lanes, store: ActivationStore, step: int, dtype: torch.dtype) -> None:
    """Save every boundary in forward order, load them in backward order, compare."""
    keys = [(i, m) for i in range(LAYERS) for m in range(MICRO_BATCHES)]
    for i, m in keys:
        store.save(i, m, lanes.compute.run(value, step, i, m, dtype), SHAPES[m])
    order = [(i, m) for i in reversed(range(LAYERS)) for m in range(MICRO_BATCHES)]
    store.turn(order)
    loaded = []
    for i, m in order:
        loaded.append(lanes.compute.run(torch.clone, store.load(i, m)))
        store.release(i, m)
    copies = [torch.empty(SHAPES[m], dtype=dtype) for _, m in order]
    for source, target in zip(loaded, copies, strict=True):
        lanes.compute.run(target.copy_, source)
    lanes.compute.record().wait()
    for (i, m), copy in zip(order, copies, strict=True):
        assert torch.equal(copy, value(step, i, m, dtype)), (i, m)


@pytest.mark.parametrize("host_layers", [0, 1, 2, LAYERS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_boundaries_come_back_as_they_were(host_layers: int, dtype: torch.dtype):
    lanes = inline_lanes(torch.device("cpu"))
    store = new_store(lanes, host_layers, dtype)
    for step in range(2):
        round_trip(lanes, store, step, dtype)


@pytest.mark.parametrize("host_layers", [1, LAYERS])
def test_and_at_any_timing(host_layers: int):
    for seed in range(30):
        lanes, _ = fuzzed_lanes(seed)
        store = new_store(lanes, host_layers)
        for step in range(2):
            round_trip(lanes, store, step, torch.float32)


def test_boundaries_on_the_device_are_dropped_when_released():
    store = new_store(inline_lanes(torch.device("cpu")), host_layers=0)
    store.save(3, 1, torch.ones(2), torch.Size((2,)))
    store.turn([(3, 1)])
    store.release(3, 1)
    with pytest.raises(KeyError):
        store.load(3, 1)


def test_clearing_forgets_what_was_saved():
    lanes = inline_lanes(torch.device("cpu"))
    store = new_store(lanes, host_layers=1)
    for i in range(LAYERS):
        store.save(i, 0, value(0, i, 0, torch.float32), SHAPES[0])
    store.clear()
    with pytest.raises(KeyError):
        store.load(3, 0)
    round_trip(lanes, store, 1, torch.float32)


def test_device_bytes_are_boundaries_kept_and_staging_for_the_others():
    needed = ActivationStore.device_bytes_needed
    assert needed(LAYERS, 0, MICRO_BATCHES, ELEMENTS, 2) == LAYERS * MICRO_BATCHES * ELEMENTS * 2
    assert needed(LAYERS, 3, MICRO_BATCHES, ELEMENTS, 2) == (MICRO_BATCHES + ActivationStore.STAGING) * ELEMENTS * 2
