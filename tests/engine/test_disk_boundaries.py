"""An engine whose boundary activations go to disk: what it takes, and what is told when the disk fails."""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model
from tiny_runs import SIZES, Subject, batch_at, differences, hyper_at, make_records, states_of, subject, tiny_engine

from slideformer.engine.engine import Engine
from slideformer.engine.measure import model_sizes
from slideformer.errors import ConfigError, DiskError, EngineFailed
from slideformer.plan.footprint import disk_bytes, host_bytes
from slideformer.storage.disk import DiskFile

BLOCKS = 6
RECORDS = make_records(12)
ALL = replace(SIZES, gradient_slots=BLOCKS, host_boundaries=BLOCKS, disk_boundaries=BLOCKS)


@cache
def of() -> Subject:
    return subject(tiny_model("llama", num_hidden_layers=BLOCKS, vocab_size=128))


@contextmanager
def engine_of(directory: Path, dtype: torch.dtype = torch.float32, **sizes: int) -> Iterator[Engine]:
    with tiny_engine(of(), replace(ALL, **sizes), dtype, offload_dir=directory) as engine:
        yield engine


def train(engine: Engine, steps: range) -> None:
    for k in steps:
        engine.train_step(batch_at(RECORDS, 4, k), hyper_at(k + 1))


def file_of(engine: Engine) -> DiskFile:
    on_disk = engine._machinery.saved._disk
    assert on_disk is not None
    return on_disk._staging._file


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("on_disk", [1, 4, BLOCKS])
def test_predicted_bytes_are_the_allocated(on_disk: int, dtype: torch.dtype, tmp_path: Path):
    with engine_of(tmp_path, dtype, disk_boundaries=on_disk, disk_buffers=3) as engine:
        allocated = sum(engine.allocator.allocated_bytes.values())
        on_file = os.fstat(file_of(engine)._file).st_size
    model, sizes = model_sizes(of().decoder), engine.sizes
    assert sum(host_bytes(model, sizes, dtype).values()) == pytest.approx(allocated, rel=0.005)
    assert disk_bytes(model, sizes, dtype)["activations"] == on_file > 0


def test_more_on_disk_never_takes_more_of_host_memory():
    model = model_sizes(of().decoder)
    needed = [
        host_bytes(model, replace(ALL, disk_boundaries=count, max_length=1024), torch.bfloat16)["activations"]
        for count in range(BLOCKS + 1)
    ]
    assert needed == sorted(needed, reverse=True) and needed[-1] < needed[0]


def test_boundaries_on_disk_need_a_directory():
    with pytest.raises(ConfigError, match="12 boundaries are to be on disk, but there is no directory"):
        Engine(of().decoder, ALL, torch.float32)


def test_nothing_is_left_in_the_directory(tmp_path: Path):
    with engine_of(tmp_path) as engine:
        train(engine, range(1))
        assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_told_and_nothing_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    allocate, left = os.posix_fallocate, [1]

    def last_fails(*args: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        allocate(*args)

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "posix_fallocate", last_fails)
    with pytest.raises(DiskError, match="cannot take .* No space left on device"), engine_of(tmp_path, disk_blocks=2):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.timeout(60)
@pytest.mark.parametrize("calls", [0, 5, 13])
@pytest.mark.parametrize("verb", ["read", "write"])
def test_a_disk_that_fails_stops_the_engine_and_names_the_block(
    verb: str, calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with engine_of(tmp_path) as engine:
        train(engine, range(1))
        engine.drain()
        call, left = getattr(os, f"p{verb}v"), [calls]

        def fail(descriptor: int, *args: object) -> int:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.EIO, "Input/output error")
            return call(descriptor, *args)

        monkeypatch.setattr(os, f"p{verb}v", fail)
        with pytest.raises(
            DiskError,
            match=rf"cannot {verb} the boundary activations of model\.layers\.\d, micro-batch \d in .*: Input/output",
        ):
            train(engine, range(1, 5))
        with pytest.raises(EngineFailed, match=r"an earlier step failed \(DiskError\)"):
            train(engine, range(5, 6))


@pytest.mark.timeout(60)
def test_a_damaged_boundary_is_never_computed_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write = DiskFile._write

    def damage(file: DiskFile, name: str, data: memoryview) -> None:
        write(file, name, data)
        if name == "model.layers.0, micro-batch 1":
            file._sums[name] ^= 1

    monkeypatch.setattr(DiskFile, "_write", damage)
    with (
        engine_of(tmp_path) as engine,
        pytest.raises(
            DiskError, match=r"the boundary activations of model\.layers\.0, micro-batch 1 in .* is not what"
        ),
    ):
        train(engine, range(2))


@pytest.mark.timeout(60)
def test_a_slow_disk_only_takes_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):

    outcomes = []
    for slow in (False, True):
        for name in ("preadv", "pwritev"):
            call = getattr(os, name)
            if slow:
                monkeypatch.setattr(os, name, lambda *args, call=call: (time.sleep(0.005), call(*args))[1])
        with engine_of(tmp_path, disk_boundaries=BLOCKS if slow else 0, disk_buffers=2) as engine:
            train(engine, range(3))
            outcomes.append(states_of(engine))
    assert differences(*outcomes) == []
