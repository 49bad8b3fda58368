"""An engine with blocks on disk: what fails there reaches the caller, and checkpoints do not know the difference."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from tiny_runs import (
    SIZES,
    Subject,
    batch_at,
    differences,
    hyper_at,
    make_records,
    states_of,
    subject,
    tiny_engine,
)

from slideformer.engine.engine import Engine
from slideformer.engine.measure import model_sizes
from slideformer.errors import ConfigError, DiskError, EngineFailed, SlideFormerError
from slideformer.memory.record_ring import BUFFERS
from slideformer.plan.footprint import disk_bytes, host_bytes
from slideformer.storage.checkpoint import restore, verify, write_checkpoint
from slideformer.storage.manifest import Data, RunFacts

BLOCKS = BUFFERS + 2
RECORDS = make_records(12)
ALL = replace(SIZES, gradient_slots=BLOCKS)
FACTS = RunFacts(
    steps=9, dtype="fp32", micro_batch_size=2, data=Data(records=3, sha256="0" * 64), versions={}, config={}
)  # fmt: skip


@cache
def of() -> Subject:
    return subject(tiny_model("llama", num_hidden_layers=BLOCKS, vocab_size=128))


@contextmanager
def engine_of(
    directory: Path, on_disk: int = BLOCKS, dtype: torch.dtype = torch.float32, **sizes: int
) -> Iterator[Engine]:
    with tiny_engine(of(), replace(ALL, disk_blocks=on_disk, **sizes), dtype, offload_dir=directory) as engine:
        yield engine


def train(engine: Engine, steps: range, max_norm: float | None = 0.5) -> None:
    for k in steps:
        engine.train_step(batch_at(RECORDS, 4, k), hyper_at(k + 1), max_norm)


# ---- checkpoints


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("before", "after"), [(0, BLOCKS), (BLOCKS, 0), (BLOCKS, 2), (3, BLOCKS)])
def test_a_checkpoint_goes_on_under_another_tier(before: int, after: int, dtype: torch.dtype, tmp_path: Path):
    with engine_of(tmp_path, 0, dtype) as engine:
        train(engine, range(5))
        whole = states_of(engine)
    with engine_of(tmp_path, before, dtype) as engine:
        train(engine, range(3))
        path = write_checkpoint(tmp_path, 3, FACTS, engine.unit_states())
        train(engine, range(3, 4))  # saving leaves the engine as it was
        manifest = verify(path)
    with engine_of(tmp_path, after, dtype, window_depth=3) as engine:
        restore(path, manifest, engine.unit_states())
        train(engine, range(3, 5))
        assert differences(states_of(engine), whole) == []


def test_a_checkpoint_is_the_same_bytes_on_every_tier(tmp_path: Path):
    found = []
    for on_disk in (0, BLOCKS):
        with engine_of(tmp_path, on_disk) as engine:
            train(engine, range(2))
            path = write_checkpoint(tmp_path / str(on_disk), 2, FACTS, engine.unit_states())
            found.append({file.name: file.read_bytes() for file in path.glob("*.safetensors")})
    assert found[0] == found[1] and len(found[0]) > BLOCKS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_weights_come_out_as_from_memory(dtype: torch.dtype, wanted: torch.dtype, tmp_path: Path):
    found: list[dict[str, torch.Tensor]] = []
    for on_disk in (0, BLOCKS):
        with engine_of(tmp_path, on_disk, dtype) as engine:
            train(engine, range(2))
            found.append({name: w.clone() for _, group in engine.weights(wanted) for name, w in group.items()})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


# ---- bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("on_disk", [1, BLOCKS])
def test_predicted_bytes_are_the_allocated(on_disk: int, dtype: torch.dtype, tmp_path: Path):
    with engine_of(tmp_path, on_disk, dtype) as engine:
        allocated = sum(engine.allocator.allocated_bytes.values())
        on_file = os.fstat(engine._records.files.rest._file).st_size  # type: ignore[union-attr]  # it has a ring
    model, sizes = model_sizes(of().decoder), engine.sizes
    assert sum(host_bytes(model, sizes, dtype).values()) == pytest.approx(allocated, rel=0.005)
    assert sum(disk_bytes(model, sizes, dtype).values()) == on_file


def test_nothing_is_left_in_the_directory(tmp_path: Path):
    with engine_of(tmp_path) as engine:
        train(engine, range(1))
        assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_blocks_on_disk_need_a_directory():
    with pytest.raises(ConfigError, match="6 blocks are to be on disk, but there is no directory"):
        Engine(of().decoder, replace(ALL, disk_blocks=BLOCKS), torch.float32)


# ---- faults


def fails_after(calls: int, number: int, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The system call works so many times more, and never again."""
    call, left = getattr(os, name), [calls]

    def count(*args: Any) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(number, os.strerror(number))
        return call(*args)

    monkeypatch.setattr(os, name, count)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("calls", [0, 3, 8])
@pytest.mark.parametrize(("name", "verb"), [("preadv", "read"), ("pwritev", "write")])
def test_a_disk_that_fails_stops_the_engine_and_names_the_block(
    name: str, verb: str, calls: int, max_norm: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with engine_of(tmp_path) as engine:
        train(engine, range(1), max_norm)
        engine.drain()
        fails_after(calls, errno.EIO, monkeypatch, name)
        with pytest.raises(DiskError, match=rf"cannot {verb} the state of model\.layers\.\d in .*: Input/output error"):
            train(engine, range(1, 5), max_norm)
            engine.drain()
        for following in (lambda: train(engine, range(5, 6)), engine.drain, engine.unit_states):
            with pytest.raises(EngineFailed, match=r"an earlier step failed \(DiskError\)"):
                following()


@pytest.mark.timeout(60)
def test_a_disk_that_fails_while_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fails_after(2, errno.ENOSPC, monkeypatch, "pwritev")
    with (
        pytest.raises(DiskError, match=r"cannot write the state of model\.layers\.\d in .*: No space left on device"),
        engine_of(tmp_path) as engine,
    ):
        train(engine, range(3))
        engine.drain()


@pytest.mark.timeout(60)
def test_a_disk_that_fails_while_a_checkpoint_is_written_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with engine_of(tmp_path) as engine:
        train(engine, range(2))
        units = engine.unit_states()
        fails_after(2, errno.EIO, monkeypatch, "preadv")
        with pytest.raises(DiskError, match="cannot read the state of"):
            write_checkpoint(tmp_path / "out", 2, FACTS, units)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.timeout(60)
def test_a_damaged_record_stops_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    read = os.preadv

    def flip(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        moved = read(descriptor, buffers, offset)
        buffers[0][1000] ^= 1
        return moved

    with engine_of(tmp_path) as engine:
        train(engine, range(2))
        engine.drain()
        monkeypatch.setattr(os, "preadv", flip)
        with pytest.raises(DiskError, match=r"the state of model\.layers\.\d in .* is not what was written") as caught:
            train(engine, range(2, 4))
            engine.drain()
        assert isinstance(caught.value, SlideFormerError) and "last checkpoint" in caught.value.hint


@pytest.mark.timeout(60)
def test_the_directory_may_vanish(tmp_path: Path):
    directory = tmp_path / "offload"
    directory.mkdir()
    with engine_of(directory) as engine:
        directory.rmdir()
        train(engine, range(3))
        found = states_of(engine)
    with engine_of(tmp_path, 0) as engine:
        train(engine, range(3))
        assert differences(found, states_of(engine)) == []
