"""A ring of buffers gives the newest record, whatever was expected."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from slideformer.errors import DiskError
from slideformer.memory.host import HostAllocator
from slideformer.memory.record_ring import BUFFERS, RecordRing
from slideformer.storage.record_files import weights_of

RECORD_BYTES, WEIGHT_BYTES = 15_000, 3_000
UNITS = [f"layer {i}" for i in range(2 * BUFFERS)]


@pytest.fixture
def allocator() -> HostAllocator:
    return HostAllocator(pin=False)


@pytest.fixture
def ring(tmp_path: Path, allocator: HostAllocator) -> Iterator[RecordRing]:
    made = RecordRing(tmp_path, dict.fromkeys(UNITS, RECORD_BYTES), allocator)
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


# ---- with weights


@pytest.fixture
def with_weights(tmp_path: Path, allocator: HostAllocator) -> Iterator[RecordRing]:
    weights = dict.fromkeys(UNITS[::2], WEIGHT_BYTES)
    made = RecordRing(tmp_path, dict.fromkeys(UNITS, RECORD_BYTES), allocator, BUFFERS, weights)
    yield made
    made.close()


def test_weights_come_with_their_record_and_alone(with_weights: RecordRing):
    ring = with_weights
    for k, unit in enumerate(UNITS):
        with ring.borrow(unit, change=True) as buffer:
            ring.buffers[buffer].fill_(k + 1)
    for k, unit in reversed(list(enumerate(UNITS))):
        with ring.borrow(unit, change=False) as buffer:
            ends = (ring.buffers[buffer][0], ring.buffers[buffer][RECORD_BYTES - 1 + 4096 * (k % 2 == 0)])
            assert [int(end) for end in ends] == [k + 1] * 2
        if k % 2 == 0:
            with ring.borrow(weights_of(unit), change=False) as buffer:
                assert set(ring.buffers[buffer][:WEIGHT_BYTES].tolist()) == {k + 1}


def test_a_ring_that_cannot_be_built_leaves_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> torch.Tensor:
        raise MemoryError("mine")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(HostAllocator, "empty", fail)
    with pytest.raises(MemoryError, match="mine"):
        RecordRing(tmp_path, {"a": 1}, HostAllocator(pin=False), BUFFERS, {"a": 1})
    assert len(os.listdir("/proc/self/fd")) == before
