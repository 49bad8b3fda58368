"""Memory for copies of states: of the largest units, so that each fits, and none is left without where all have one."""

import itertools

import torch

from slideformer.memory.host import HostAllocator
from slideformer.memory.snapshot import SnapshotMemory, StateCopy

UNITS = [10, 30, 20, 30]


def memory_of(units: int) -> tuple[SnapshotMemory, HostAllocator]:
    allocator = HostAllocator(pin=False)
    return SnapshotMemory(UNITS, units, allocator), allocator


def test_it_takes_what_it_says():
    for units, expected in enumerate([0, 30, 60, 80, 90, 90]):
        allocated = memory_of(units)[1].allocated_bytes.get("checkpoint copies", 0)
        assert allocated == expected == SnapshotMemory.bytes_needed(UNITS, units)


def test_with_room_for_all_any_order_finds_a_buffer():
    for order in itertools.permutations(UNITS):
        memory, _ = memory_of(len(UNITS))
        assert all(memory.take(size) is not None for size in order)


def test_a_buffer_is_given_out_once_and_fits():
    memory, _ = memory_of(2)
    first, second = memory.take(10), memory.take(30)
    assert first is not None and second is not None and first.numel() >= 10 and second.numel() >= 30
    assert first.data_ptr() != second.data_ptr() and memory.take(1) is None
    memory.give_back(first)
    assert memory.take(20) is first


def test_room_is_for_what_fits_now():
    memory, _ = memory_of(2)
    assert memory.has_room_for(30) and not memory.has_room_for(31)
    assert memory.take(30) is not None and memory.take(30) is not None
    assert not memory.has_room_for(1)


def test_a_copy_of_many_pieces_is_whole():
    large = torch.randint(256, (9 * 2**20 + 77,), dtype=torch.uint8)
    copy = StateCopy({"exp_avg": large}, torch.zeros_like(large), 3).tensors()
    assert torch.equal(copy["exp_avg"], large)


def test_a_copy_keeps_values_shapes_and_types():
    tensors = {
        "hi": torch.arange(6).to(torch.bfloat16), "lo": torch.arange(6).to(torch.int16),
        "exp_avg": torch.arange(4.0).view(2, 2), "exp_avg_sq": torch.ones(2), "frozen": torch.empty(0),
    }  # fmt: skip
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    copy = StateCopy(tensors, torch.zeros(100, dtype=torch.uint8), 2).tensors()
    for tensor in tensors.values():
        tensor.zero_()
    assert list(copy) == list(before)
    for name, tensor in before.items():
        assert copy[name].dtype == tensor.dtype and torch.equal(copy[name], tensor)
