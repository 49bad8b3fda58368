"""A state on disk is a state in memory, read late; with or without its weights."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from slideformer.layout import FlatLayout
from slideformer.memory.disk_state import DiskState, fetched_parts, record_bytes, spread, weight_bytes
from slideformer.memory.host import HostAllocator, LayerState
from slideformer.memory.record_ring import BUFFERS, RecordRing
from slideformer.optim.adamw import AdamWStep

LAYOUT = FlatLayout({"w": (5, 300), "b": (7,)}, no_decay=["b"], frozen=["b"])
UNIT = "layer 0"
HYPER = AdamWStep(1e-2, 0.9, 0.99, 1e-3, 0.1, step=1)
DTYPES = [torch.float32, torch.bfloat16]
WITH_WEIGHTS = pytest.mark.parametrize("with_weights", [False, True])


class Rings:
    """Makes rings for one state each."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.made: list[RecordRing] = []

    def of(self, dtype: torch.dtype, with_weights: bool) -> RecordRing:
        weights = {UNIT: weight_bytes(LAYOUT, dtype)} if with_weights else {}
        records = {UNIT: record_bytes(LAYOUT, dtype)}
        self.made.append(RecordRing(self.directory, records, HostAllocator(pin=False), BUFFERS, weights))
        return self.made[-1]


@pytest.fixture
def rings(tmp_path: Path) -> Iterator[Rings]:
    rings = Rings(tmp_path)
    yield rings
    for ring in rings.made:
        ring.close()


def both(rings: Rings, dtype: torch.dtype, with_weights: bool) -> tuple[DiskState, LayerState]:
    allocator, ring = HostAllocator(pin=False), rings.of(dtype, with_weights)
    parts = fetched_parts(dtype)
    on_disk = DiskState(UNIT, LAYOUT, allocator, ring, False, 1, parts, weights_on_disk=with_weights)
    in_memory = LayerState(UNIT, LAYOUT, HostAllocator(pin=False), pin_lo=False, threads=1)
    assert sum(allocator.allocated_bytes.values()) == (0 if with_weights else weight_bytes(LAYOUT, dtype))
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


@WITH_WEIGHTS
@pytest.mark.parametrize("dtype", DTYPES)
def test_updates_are_those_of_a_state_in_memory(dtype: torch.dtype, with_weights: bool, rings: Rings):
    on_disk, in_memory = both(rings, dtype, with_weights)
    assert_same(on_disk, in_memory)
    for step, reached in enumerate((["w"], [], ["w"]), start=1):
        gradient = torch.randn(LAYOUT.trained_numel)
        for state in (on_disk, in_memory):
            state.update(gradient, reached, replace(HYPER, step=step))
        assert_same(on_disk, in_memory)
    assert on_disk.counts.missed == in_memory.counts.missed == Counter({"w": 1})


@WITH_WEIGHTS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out_dtype", DTYPES)
def test_weights_are_those_of_a_state_in_memory(
    dtype: torch.dtype, out_dtype: torch.dtype, with_weights: bool, rings: Rings
):
    on_disk, in_memory = both(rings, dtype, with_weights)
    found, expected = torch.empty(LAYOUT.numel, dtype=out_dtype), torch.empty(LAYOUT.numel, dtype=out_dtype)
    on_disk.copy_weights(found)
    in_memory.copy_weights(expected)
    assert torch.equal(found, expected)
    with on_disk.opened_weights(out_dtype) as readable:
        assert torch.equal(readable.read("w", out_dtype), in_memory.read("w", out_dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_the_device_fetches_needs_no_disk(dtype: torch.dtype, rings: Rings, monkeypatch: pytest.MonkeyPatch):
    on_disk, in_memory = both(rings, dtype, with_weights=False)
    rings.made[-1].drain()
    monkeypatch.setattr(os, "preadv", None)
    out, expected = torch.empty(LAYOUT.numel, dtype=dtype), torch.empty(LAYOUT.numel, dtype=dtype)
    on_disk.copy_weights(out)
    in_memory.copy_weights(expected)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_on_disk_are_read_without_the_rest(dtype: torch.dtype, rings: Rings):
    on_disk, in_memory = both(rings, dtype, with_weights=True)
    rings.made[-1].drain()
    files = rings.made[-1].files
    assert files.weights is not None
    files.rest._sums[UNIT] ^= 1  # nobody may look at it
    out, expected = torch.empty(LAYOUT.numel, dtype=dtype), torch.empty(LAYOUT.numel, dtype=dtype)
    on_disk.copy_weights(out)
    in_memory.copy_weights(expected)
    assert torch.equal(out, expected)
    record = HostAllocator(pin=False).empty("staging", (8192,), torch.uint8)
    files.weights.read(UNIT, record.numpy().data).result()
    on_disk.copy_record(record, out.zero_())
    assert torch.equal(out, expected)


def test_ten_of_twelve_bytes_are_on_disk_and_with_the_weights_all():
    layout = FlatLayout({"w": (128, 8)})
    assert record_bytes(layout, torch.bfloat16) == 10 * layout.numel
    assert record_bytes(layout, torch.float32) == 8 * layout.numel  # the device fetches the remainders, too
    for dtype in DTYPES:
        assert record_bytes(layout, dtype) + weight_bytes(layout, dtype) == 12 * layout.numel
    assert RecordRing.bytes_needed({"one": 10 * layout.numel, "other": 5}) == BUFFERS * 3 * 4096
    assert RecordRing.bytes_needed({"one": 10 * layout.numel}, 2, {"one": 2 * layout.numel}) == 2 * 4 * 4096


def test_some_of_the_units_at_even_distances():
    assert spread("abcdef", 2) == ["c", "f"] and spread("abc", 9) == ["a", "b", "c"] and spread([], 3) == []
