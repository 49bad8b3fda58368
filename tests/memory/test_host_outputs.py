"""Outputs that leave the device come back before they are read, at any timing, into memory that nobody else uses."""

import pytest
import torch
from torch import Tensor

from slideformer.lanes.fuzzer import fuzzed_lanes
from slideformer.lanes.lanes import Lanes, inline_lanes
from slideformer.memory.host import HostAllocator
from slideformer.memory.host_outputs import ALIGNED_BYTES, HostOutputs, starts

LAYERS, MICRO_BATCHES, MOST_BYTES = 5, 2, 3 * ALIGNED_BYTES
KEYS = [(i, m) for i in range(LAYERS) for m in range(MICRO_BATCHES)]
SIZES = (700, 12)  # bytes of the two outputs of each forward


class Forward:
    """Holds two outputs, as a tape does."""

    def __init__(self, number: int):
        self.held: list[Tensor] | None = outputs(number)
        self.moved_bytes = 0

    def move_outputs(self, memory: Tensor) -> None:
        assert self.held is not None
        for output, start in zip(self.held, starts(self.held), strict=True):
            memory[start : start + output.numel()] = output
        self.moved_bytes = starts(self.held)[-1] + self.held[-1].numel()
        self.held = None

    def give_outputs(self, memory: Tensor) -> None:
        laid_out = zip(starts([torch.empty(size) for size in SIZES]), SIZES, strict=True)
        self.held = [memory[start : start + size] for start, size in laid_out]


def read(forward: Forward) -> Tensor:
    assert forward.held is not None, "backward without what forward gave"
    return torch.cat(forward.held)


def outputs(number: int) -> list[Tensor]:
    return [torch.full((size,), number + k, dtype=torch.uint8) for k, size in enumerate(SIZES)]


def expected(number: int) -> Tensor:
    return torch.cat(outputs(number))


def step(lanes: Lanes, store: HostOutputs, first: int) -> None:
    """A forward and a backward through all blocks; what each backward read is compared."""
    tapes = {}
    for k, (i, m) in enumerate(KEYS):
        tapes[i, m] = lanes.compute.run(Forward, first + k)
        store.save(i, m, tapes[i, m])
    order = [(i, m) for i in reversed(range(LAYERS)) for m in range(MICRO_BATCHES)]
    store.turn(order)
    copies = {}
    for i, m in order:
        store.load(i, m, tapes[i, m])
        copies[i, m] = torch.zeros(sum(SIZES), dtype=torch.uint8)
        lanes.compute.run(copies[i, m].copy_, lanes.compute.run(read, tapes.pop((i, m))))
        store.release(i, m)
    lanes.compute.record().wait()
    for k, key in enumerate(KEYS):
        assert torch.equal(copies[key], expected(first + k)), key


@pytest.mark.parametrize("keys", [[], [(0, 0)], [(4, 1)], KEYS[::3], KEYS])
def test_outputs_come_back_as_they_were(keys: list[tuple[int, int]]):
    lanes, allocator = inline_lanes(torch.device("cpu")), HostAllocator(pin=False)
    store = HostOutputs(lanes, allocator, keys, MOST_BYTES)
    needed = HostOutputs.host_bytes_needed(len(keys), MOST_BYTES)
    assert allocator.allocated_bytes.get("kept outputs", 0) == needed
    step(lanes, store, 1)
    step(lanes, store, 101)


@pytest.mark.parametrize("keys", [KEYS[::3], KEYS])
def test_and_at_any_timing(keys: list[tuple[int, int]]):
    for seed in range(30):
        lanes, _ = fuzzed_lanes(seed)
        store = HostOutputs(lanes, HostAllocator(pin=False), keys, MOST_BYTES)
        step(lanes, store, 1)
        step(lanes, store, 101)


def test_a_step_may_have_fewer_micro_batches():
    lanes = inline_lanes(torch.device("cpu"))
    store = HostOutputs(lanes, HostAllocator(pin=False), KEYS, MOST_BYTES)
    step(lanes, store, 1)
    forward = Forward(7)
    store.save(3, 0, forward)
    store.turn([(i, 0) for i in reversed(range(LAYERS))])
    store.load(3, 0, forward)
    assert torch.equal(read(forward), expected(7))
    store.release(3, 0)


def test_the_device_needs_room_for_what_is_read_and_what_arrives():
    needed = [HostOutputs.device_bytes_needed(count, MOST_BYTES) for count in (0, 1, 2, 9)]
    assert needed == [0, MOST_BYTES, 2 * MOST_BYTES, 2 * MOST_BYTES]
