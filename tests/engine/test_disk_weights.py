"""An engine whose blocks have their weights on disk, too: what fails reaches the caller, nothing else is noticed."""

import errno
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
from slideformer.errors import DiskError, EngineFailed
from slideformer.memory.disk_staging import DiskStaging, Staged
from slideformer.memory.record_ring import BUFFERS
from slideformer.plan.footprint import disk_bytes, host_bytes
from slideformer.storage.checkpoint import restore, verify, write_checkpoint
from slideformer.storage.disk import DiskFile
from slideformer.storage.manifest import Data, RunFacts

BLOCKS = BUFFERS + 4
RECORDS = make_records(12)
IN_MEMORY = replace(SIZES, gradient_slots=BLOCKS)
FACTS = RunFacts(
    steps=9, dtype="fp32", micro_batch_size=2, data=Data(records=3, sha256="0" * 64), versions={}, config={}
)  # fmt: skip


@cache
def of() -> Subject:
    return subject(tiny_model("llama", num_hidden_layers=BLOCKS, vocab_size=128))


@contextmanager
def engine_of(
    directory: Path, with_weights: int = BLOCKS, dtype: torch.dtype = torch.float32, **sizes: int
) -> Iterator[Engine]:
    on_disk = {"disk_blocks": BLOCKS, "disk_weight_blocks": with_weights} if with_weights else {}
    with tiny_engine(of(), replace(IN_MEMORY, **on_disk, **sizes), dtype, offload_dir=directory) as engine:
        yield engine


def train(engine: Engine, steps: range, max_norm: float | None = 0.5) -> None:
    for k in steps:
        engine.train_step(batch_at(RECORDS, 4, k), hyper_at(k + 1), max_norm)


# ---- checkpoints and models


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("before", "after"), [(0, BLOCKS), (BLOCKS, 0), (BLOCKS, 3)])
def test_a_checkpoint_goes_on_under_another_tier(before: int, after: int, dtype: torch.dtype, tmp_path: Path):
    with engine_of(tmp_path, 0, dtype) as engine:
        train(engine, range(4))
        whole = states_of(engine)
    with engine_of(tmp_path, before, dtype) as engine:
        train(engine, range(2))
        path = write_checkpoint(tmp_path, 2, FACTS, engine.unit_states())
        train(engine, range(2, 3))  # saving leaves the engine as it was
        manifest = verify(path)
    with engine_of(tmp_path, after, dtype, window_depth=3) as engine:
        restore(path, manifest, engine.unit_states())
        train(engine, range(2, 4))
        assert differences(states_of(engine), whole) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_weights_come_out_as_from_memory(dtype: torch.dtype, wanted: torch.dtype, tmp_path: Path):
    found: list[dict[str, torch.Tensor]] = []
    for with_weights in (0, BLOCKS):
        with engine_of(tmp_path, with_weights, dtype) as engine:
            train(engine, range(2))
            found.append({name: w.clone() for _, group in engine.weights(wanted) for name, w in group.items()})
            assert engine.find_non_finite(batch_at(RECORDS, 4, 0)).startswith("every block's output is finite")
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_background_checkpoint_keeps_the_step_it_began_at(tmp_path: Path):
    files = []
    for with_weights in (0, BLOCKS):
        with engine_of(tmp_path, with_weights) as engine:
            train(engine, range(2))
            snapshot = engine.begin_snapshot()
            with ThreadPoolExecutor(1) as pool:
                written = pool.submit(write_checkpoint, tmp_path / str(with_weights), 2, FACTS, snapshot.unit_states())
                train(engine, range(2, 4))
                files.append({file.name: file.read_bytes() for file in written.result(60).glob("*.safetensors")})
            engine.end_snapshot()
    assert files[0] == files[1] and len(files[0]) > BLOCKS


# ---- bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_weights", [1, BLOCKS])
def test_predicted_bytes_are_the_allocated(with_weights: int, dtype: torch.dtype, tmp_path: Path):
    with engine_of(tmp_path, with_weights, dtype, disk_buffers=2) as engine:
        allocated = sum(engine.allocator.allocated_bytes.values())
        files = engine._records.files  # type: ignore[union-attr]  # it has a ring
        assert files.weights is not None
        on_disk = [os.fstat(file._file).st_size for file in (files.rest, files.weights)]
    model, sizes = model_sizes(of().decoder), engine.sizes
    assert sum(host_bytes(model, sizes, dtype).values()) == pytest.approx(allocated, rel=0.005)
    assert list(disk_bytes(model, sizes, dtype).values())[:2] == on_disk


def test_with_all_on_disk_a_block_takes_nothing_of_host_memory(tmp_path: Path):
    model, sizes = model_sizes(of().decoder), replace(IN_MEMORY, disk_blocks=BLOCKS, disk_weight_blocks=BLOCKS)
    left = host_bytes(model, sizes, torch.bfloat16)["weights and optimizer state"]
    blocks = sum(layout.numel for layout in model.block_layouts)
    assert left == 12 * (sum(layout.numel for layout in model.layouts.values()) - blocks)
    assert sum(disk_bytes(model, sizes, torch.bfloat16).values()) >= 12 * blocks


# ---- what is read, and when


@contextmanager
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the blocks whose weights are asked for, in order."""
    asked: list[str] = []
    read = DiskStaging._read

    def noted(staging: DiskStaging, record: str, staged: Staged) -> Staged:
        asked.append(record)
        return read(staging, record, staged)

    with monkeypatch.context() as patch:
        patch.setattr(DiskStaging, "_read", noted)
        yield asked


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_weights_are_read_in_the_order_of_their_use_and_what_is_still_there_is_not(
    depth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    names = of().decoder.block_names
    with engine_of(tmp_path, window_depth=depth) as engine:
        train(engine, range(1))
        engine.drain()
        with reads(monkeypatch) as asked:
            train(engine, range(1, 2), None)
    forward, backward = asked[:BLOCKS], asked[BLOCKS:]
    assert forward == names
    expected = names[: BLOCKS - depth][::-1]
    assert backward == expected[-len(backward) :]  # in the buffers may be what forward read last, too
    assert len(backward) >= BLOCKS - depth - BUFFERS


def test_an_evaluation_reads_what_slides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with engine_of(tmp_path, window_depth=3) as engine:
        train(engine, range(1))
        engine.drain()
        with reads(monkeypatch) as asked:
            engine.evaluate([batch_at(RECORDS, 4, k) for k in range(3)])
    assert asked == [*of().decoder.block_names, *(of().decoder.block_names[1:] * 2)]


def test_two_blocks_beside_the_one_that_is_awaited_are_on_their_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The disk gives nothing until three are asked for."""
    asked, enough = [0], threading.Event()
    move, ask = DiskFile._read, DiskStaging._read

    def held_up(file: DiskFile, name: str, into: memoryview) -> None:
        if file.what == "weights":
            assert enough.wait(30)
        move(file, name, into)

    def counted(staging: DiskStaging, record: str, staged: Staged) -> Staged:
        asked[0] += 1
        if asked[0] >= 3:
            enough.set()
        return ask(staging, record, staged)

    with engine_of(tmp_path, window_depth=1) as engine:
        engine.drain()
        monkeypatch.setattr(DiskFile, "_read", held_up)
        monkeypatch.setattr(DiskStaging, "_read", counted)
        train(engine, range(1))


# ---- faults


def fails_after(calls: int, name: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk moves so many more records of this kind, and then no more."""
    method, left = getattr(DiskFile, name), [calls]

    def count(file: DiskFile, record: str, memory: memoryview) -> None:
        left[0] -= file.what == what
        if file.what == what and left[0] < 0:
            raise DiskError(f"cannot {name[1:]} the {what} of {record} in {file.directory}: Input/output error")
        return method(file, record, memory)

    monkeypatch.setattr(DiskFile, name, count)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("calls", [0, 3, BLOCKS + 2])
@pytest.mark.parametrize("verb", ["read", "write"])
def test_a_disk_that_fails_stops_the_engine_and_names_the_block(
    verb: str, calls: int, max_norm: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with engine_of(tmp_path) as engine:
        train(engine, range(1), max_norm)
        engine.drain()
        fails_after(calls, f"_{verb}", "weights", monkeypatch)
        with pytest.raises(
            DiskError, match=rf"cannot {verb} the weights of model\.layers\.\d in .*: Input/output error"
        ):
            train(engine, range(1, 5), max_norm)
            engine.drain()
        for following in (lambda: train(engine, range(5, 6)), engine.drain, engine.unit_states):
            with pytest.raises(EngineFailed, match=r"an earlier step failed \(DiskError\)"):
                following()


@pytest.mark.timeout(60)
def test_damaged_weights_are_never_computed_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with engine_of(tmp_path) as engine:
        train(engine, range(1))
        engine.drain()
        engine._records.files.weights._sums["model.layers.5"] ^= 1  # type: ignore[union-attr]
        with pytest.raises(DiskError, match=r"the weights of model\.layers\.5 in .* is not what was written"):
            train(engine, range(1, 2))


def test_a_disk_without_room_for_the_weights_is_told_and_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    allocate, calls = os.posix_fallocate, [0]

    def second_fails(*args: int) -> None:
        calls[0] += 1
        if calls[0] == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        allocate(*args)

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "posix_fallocate", second_fails)
    with pytest.raises(DiskError, match="cannot take .* No space left on device"), engine_of(tmp_path):
        pass
    assert len(os.listdir("/proc/self/fd")) == before and list(tmp_path.iterdir()) == []
