"""A ring of buffers gives the newest record, whatever was expected; a state on disk is a state in memory, read late."""

import os
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from slideformer.errors import DiskError
from slideformer.layout import FlatLayout
from slideformer.memory.disk_state import DiskState, fetched_parts, record_bytes, weight_bytes
from slideformer.memory.host import HostAllocator, LayerState
from slideformer.memory.record_ring import BUFFERS, RecordRing
from slideformer.optim.adamw import AdamWStep

LAYOUT = FlatLayout({"w": (5, 300), "b": (7,)}, no_decay=["b"], frozen=["b"])
UNITS = [f"layer {i}" for i in range(2 * BUFFERS)]
HYPER = AdamWStep(1e-2, 0.9, 0.99, 1e-3, 0.1, step=1)


@pytest.fixture
def allocator() -> HostAllocator:
    return HostAllocator(pin=False)


@pytest.fixture
def ring(tmp_path: Path, allocator: HostAllocator) -> Iterator[RecordRing]:
    made = RecordRing(tmp_path, dict.fromkeys(UNITS, record_bytes(LAYOUT, torch.bfloat16)), allocator)
    yield made
    made.close()


def add_one(ring: RecordRing, unit: str) -> int:
    """Adds one to all bytes of a record and returns what they are then."""
    with ring.borrow(unit, change=True) as buffer:
        ring.buffers[buffer].add_(1)
        assert len(ring.buffers[buffer].unique()) == 1
        return int(ring.buffers[buffer][0])


def test_a_record_keeps_its_changes_and_only_those(ring: RecordRing):
    assert [add_one(ring, unit) for unit in UNITS] == [1] * len(UNITS)
    with ring.borrow(UNITS[0], change=False) as buffer:
        ring.buffers[buffer].add_(1)
    assert [add_one(ring, unit) for unit in UNITS] == [2] * len(UNITS)


def test_what_is_expected_arrives_as_far_as_there_are_buffers(ring: RecordRing):
    ring.expect(UNITS)
    for unit in UNITS[:BUFFERS]:
        ring._arriving[unit][1].result()
        assert ring.ready(unit)
    assert not ring.ready(UNITS[BUFFERS]) and ring.ready("not on disk")


def test_what_was_not_expected_comes_all_the_same(ring: RecordRing):
    ring.expect(UNITS[:BUFFERS])  # all buffers are taken, and not one of these is asked for
    assert add_one(ring, UNITS[-1]) == 1 and add_one(ring, UNITS[0]) == 1
    ring.drain()


def test_expecting_a_record_that_is_being_changed_does_not_bring_the_old_one(ring: RecordRing):
    for round_ in range(1, 4):
        with ring.borrow(UNITS[0], change=True) as buffer:
            ring.expect(UNITS[:2])
            ring.buffers[buffer].add_(1)
        assert int(ring.buffers[buffer][0]) == round_
        ring.expect(UNITS[:2])


def test_many_threads_borrow_more_than_there_are_buffers(ring: RecordRing):
    with ThreadPoolExecutor(4) as pool:
        for round_ in range(1, 4):
            assert list(pool.map(lambda unit: add_one(ring, unit), UNITS)) == [round_] * len(UNITS)


@pytest.mark.timeout(60)
def test_two_who_want_one_record_get_it_one_after_the_other(ring: RecordRing):
    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(lambda _: add_one(ring, UNITS[0]), range(20))) == list(range(1, 21))


@pytest.mark.timeout(60)
def test_a_failed_write_is_told_to_whoever_comes_next(ring: RecordRing, monkeypatch: pytest.MonkeyPatch):
    reached = threading.Event()

    def fail(*_: Any) -> int:
        reached.set()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pwritev", fail)
    add_one(ring, UNITS[3])
    assert reached.wait(10)
    with pytest.raises(DiskError, match=f"cannot write the state of {UNITS[3]} in .*: Input/output error"):
        ring.drain()
    with pytest.raises(DiskError, match=UNITS[3]):
        ring.expect(UNITS)
    with pytest.raises(DiskError, match=UNITS[3]):
        add_one(ring, UNITS[0])


def test_what_fails_while_a_record_is_borrowed_gives_its_buffer_back_unwritten(ring: RecordRing):
    for _ in range(2 * BUFFERS):
        with pytest.raises(ValueError, match="mine"), ring.borrow(UNITS[0], change=True) as buffer:
            ring.buffers[buffer].add_(1)
            raise ValueError("mine")
    assert add_one(ring, UNITS[0]) == 1


# ---- states


def both(ring: RecordRing, dtype: torch.dtype) -> tuple[DiskState, LayerState]:
    allocator = HostAllocator(pin=False)
    on_disk = DiskState(UNITS[0], LAYOUT, allocator, ring, False, 1, fetched_parts(dtype))
    in_memory = LayerState(UNITS[0], LAYOUT, HostAllocator(pin=False), pin_lo=False, threads=1)
    assert sum(allocator.allocated_bytes.values()) == weight_bytes(LAYOUT, dtype)
    value = torch.randn(5, 300)
    for state in (on_disk, in_memory):
        with state.opened(change=True) as whole:
            whole.load("w", value)
            whole.load("b", torch.arange(7.0))
    return on_disk, in_memory


def assert_same(one: DiskState, other: LayerState) -> None:
    with one.opened(change=False) as whole:
        found, expected = whole.tensors(), other.tensors()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_updates_are_those_of_a_state_in_memory(dtype: torch.dtype, ring: RecordRing):
    on_disk, in_memory = both(ring, dtype)
    assert_same(on_disk, in_memory)
    for step, reached in enumerate((["w"], [], ["w"]), start=1):
        gradient = torch.randn(LAYOUT.trained_numel)
        for state in (on_disk, in_memory):
            state.update(gradient, reached, replace(HYPER, step=step))
        assert_same(on_disk, in_memory)
    assert on_disk.counts.missed == in_memory.counts.missed == Counter({"w": 1})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16])
def test_weights_are_those_of_a_state_in_memory(dtype: torch.dtype, out_dtype: torch.dtype, ring: RecordRing):
    on_disk, in_memory = both(ring, dtype)
    found, expected = torch.empty(LAYOUT.numel, dtype=out_dtype), torch.empty(LAYOUT.numel, dtype=out_dtype)
    on_disk.copy_weights(found)
    in_memory.copy_weights(expected)
    assert torch.equal(found, expected)
    with on_disk.opened_weights(out_dtype) as readable:
        assert torch.equal(readable.read("w", out_dtype), in_memory.read("w", out_dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_the_device_fetches_needs_no_disk(dtype: torch.dtype, ring: RecordRing, monkeypatch: pytest.MonkeyPatch):
    on_disk, in_memory = both(ring, dtype)
    ring.drain()
    monkeypatch.setattr(os, "preadv", None)
    out, expected = torch.empty(LAYOUT.numel, dtype=dtype), torch.empty(LAYOUT.numel, dtype=dtype)
    on_disk.copy_weights(out)
    in_memory.copy_weights(expected)
    assert torch.equal(out, expected)


def test_ten_of_twelve_bytes_are_on_disk(allocator: HostAllocator):
    layout = FlatLayout({"w": (128, 8)})
    assert record_bytes(layout, torch.bfloat16) == 10 * layout.numel
    assert record_bytes(layout, torch.float32) == 8 * layout.numel  # the device fetches the remainders, too
    assert RecordRing.bytes_needed({"one": 10 * layout.numel, "other": 5}) == BUFFERS * 3 * 4096
