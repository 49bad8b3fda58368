"""A checkpoint written while training goes on is the one that a standstill would have written, and costs no bit."""

import itertools
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from tiny_runs import SIZES, States, Subject, batch_at, differences, hyper_at, make_records, states_of, subject

from slideformer.engine.engine import Engine
from slideformer.engine.snapshot import Snapshot
from slideformer.engine.updates import Updates
from slideformer.errors import CheckpointError, DiskError, WorkerFailed
from slideformer.memory.host import LayerState
from slideformer.memory.snapshot import StateCopy
from slideformer.plan.sizes import Sizes
from slideformer.schedule_fuzzer import fuzzed_lanes
from slideformer.storage.checkpoint import write_checkpoint
from slideformer.storage.manifest import Data, RunFacts, read_manifest
from slideformer.streams import Lanes, inline_lanes

BLOCKS, ALL_UNITS = 6, 9
SAVED, LAST = 2, 5  # steps: the one that is saved, and the last one
RECORDS = [
    {name: [t if t < 0 else t % 64 for t in values[:9]] for name, values in record.items()}
    for record in make_records(12)
]
FACTS = RunFacts(
    steps=LAST, dtype="fp32", micro_batch_size=2, data=Data(records=1, sha256="0" * 64), versions={}, config={}
)  # fmt: skip
TIGHT = replace(SIZES, max_length=9, window_depth=2, gradient_slots=2)
CLIPPED = replace(TIGHT, gradient_slots=BLOCKS)
Files = dict[str, tuple[str, dict[str, int]]]


@dataclass(frozen=True)
class Run:
    """Some steps of one model; `seed` draws the lanes' interleaving, None leaves them inline."""

    family: str
    max_norm: float | None
    copies: int  # units there is memory for
    on_disk: int = 0
    seed: int | None = None
    resident: int | None = None  # blocks, with embedding and head; None: nothing is, and all is fp32

    @property
    def sizes(self) -> Sizes:
        sizes = replace(CLIPPED if self.max_norm else TIGHT, snapshot_units=self.copies, disk_blocks=self.on_disk)
        if not self.resident:
            return sizes
        return replace(sizes, resident=self.resident, resident_ends=True, resident_gradients=self.max_norm is not None)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.resident is None else torch.bfloat16

    @contextmanager
    def engine(self, directory: Path) -> Iterator[Engine]:
        of = tiny(self.family)
        start = dict(of.model.named_parameters())
        with Engine(of.decoder, self.sizes, self.dtype, self.lanes, threads=1, offload_dir=directory) as engine:
            engine.load((u, {n: start[n].detach() for n in names}) for u, names in engine.parameter_groups().items())
            yield engine

    @property
    def lanes(self) -> Lanes:
        return inline_lanes(torch.device("cpu")) if self.seed is None else fuzzed_lanes(self.seed)[0]

    def train(self, engine: Engine, after: int, to: int) -> None:
        for step in range(after + 1, to + 1):
            engine.train_step(batch_at(RECORDS, 4, step), hyper_at(step), self.max_norm)


@cache
def tiny(family: str) -> Subject:
    shape = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "head_dim": 4, "num_hidden_layers": BLOCKS}
    return subject(tiny_model(family, **shape))


@cache
def at_a_standstill(family: str, max_norm: float | None, resident: int | None = None) -> tuple[Files, States]:
    """What a checkpoint holds for which training stands still, and the states at the end."""
    from tempfile import TemporaryDirectory

    run = Run(family, max_norm, 0, resident=resident)
    with TemporaryDirectory() as directory, run.engine(Path(directory)) as engine:
        run.train(engine, 0, SAVED)
        files = contents(write_checkpoint(Path(directory), SAVED, FACTS, engine.unit_states()))
        run.train(engine, SAVED, LAST)
        return files, states_of(engine)


def contents(path: Path) -> Files:
    return {unit: (file.sha256, file.missed) for unit, file in read_manifest(path).units.items()}


@contextmanager
def saving_meanwhile(engine: Engine, directory: Path) -> Iterator[list[Path]]:
    """A snapshot of now is written by a thread while what is within runs; the path is there afterwards."""
    snapshot, paths = engine.begin_snapshot(), []
    with ThreadPoolExecutor(1) as pool:
        try:
            written = pool.submit(write_checkpoint, directory, SAVED, FACTS, snapshot.unit_states())
            yield paths
            engine.drain()
            paths.append(written.result())
        finally:
            engine.end_snapshot()


TIMINGS = [
    *(Run(family, norm, copies) for family in ("qwen3", "mistral") for norm in (None, 0.5) for copies in (9, 1, 0)),
    *(Run("qwen3", norm, copies, on_disk=4) for norm in (None, 0.5) for copies in (9, 0)),
    *(Run(("qwen3", "mistral")[k % 2], (None, 0.5)[k // 2 % 2], (9, 2, 0)[k % 3], seed=k) for k in range(12)),
    *(Run("qwen3", (None, 0.5)[k % 2], (9, 1, 0)[k % 3], on_disk=6, seed=k) for k in range(6)),
    *(Run(family, norm, 9, resident=4) for family in ("qwen3", "mistral") for norm in (None, 0.5)),
    *(Run("qwen3", norm, copies, resident=BLOCKS) for norm in (None, 0.5) for copies in (1, 0)),
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("run", TIMINGS, ids=str)
def test_the_checkpoint_and_the_training_are_those_of_a_standstill(run: Run, tmp_path: Path):
    files, states = at_a_standstill(run.family, run.max_norm, None if run.resident is None else 0)
    with run.engine(tmp_path) as engine:
        run.train(engine, 0, SAVED)
        with saving_meanwhile(engine, tmp_path) as paths:
            run.train(engine, SAVED, LAST)
        assert contents(paths[0]) == files
        assert differences(states_of(engine), states) == []


@pytest.fixture
def nobody_goes_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Snapshot, "_take_ahead", lambda _: None)


@pytest.mark.usefixtures("nobody_goes_ahead")
@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize(("on_disk", "resident"), [(0, None), (4, None), (0, 4), (0, BLOCKS)])
@pytest.mark.parametrize("guarded", [True, False])
def test_a_unit_is_taken_before_its_update(
    max_norm: float | None,
    on_disk: int,
    resident: int | None,
    guarded: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """With the writer so late that all steps are over, only the optimizer can have kept what was there."""
    if not guarded:
        monkeypatch.setattr(Updates, "about_to_change", lambda *_: None)
    run = Run("qwen3", max_norm, ALL_UNITS, on_disk, resident=resident)
    with run.engine(tmp_path) as engine:
        run.train(engine, 0, SAVED)
        snapshot = engine.begin_snapshot()
        run.train(engine, SAVED, LAST)
        engine.drain()
        found = contents(write_checkpoint(tmp_path, SAVED, FACTS, snapshot.unit_states()))
    expected = at_a_standstill("qwen3", max_norm, None if resident is None else 0)[0]
    same = {unit for unit in expected if found[unit] == expected[unit]}
    assert same == (expected.keys() if guarded else set())


@pytest.mark.usefixtures("nobody_goes_ahead")
def test_the_updates_of_the_step_itself_are_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A writer that comes at once waits for them, whatever lies between: here they cannot run before it has come."""
    run, may_update, update = Run("qwen3", 0.5, 0), threading.Event(), LayerState.update
    with run.engine(tmp_path) as engine:
        run.train(engine, 0, SAVED - 1)
        engine.drain()
        monkeypatch.setattr(LayerState, "update", lambda *args: (may_update.wait(30), update(*args))[1])
        run.train(engine, SAVED - 1, SAVED)
        snapshot = engine.begin_snapshot()
        with ThreadPoolExecutor(1) as pool:
            written = pool.submit(write_checkpoint, tmp_path, SAVED, FACTS, snapshot.unit_states())
            with pytest.raises(TimeoutError):
                written.result(timeout=0.3)
            may_update.set()
            assert contents(written.result()) == at_a_standstill("qwen3", 0.5)[0]


def test_a_step_left_out_meanwhile_is_not_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Snapshot, "_take_ahead", lambda _: None)
    run = Run("qwen3", 1e9, ALL_UNITS)
    with run.engine(tmp_path) as engine:
        run.train(engine, 0, SAVED)
        snapshot = engine.begin_snapshot()
        result = engine.train_step(
            batch_at(RECORDS, 4, 3),
            hyper_at(3),
            1e9,
            loss=lambda chunk: chunk.logits.sum() * math.nan,
            skip_non_finite=True,
        )
        assert result.non_finite
        path = write_checkpoint(tmp_path, SAVED, FACTS, snapshot.unit_states())
        assert all(not set(missed.values()) - {0} for _, missed in contents(path).values())
        assert all(set(state.counts.missed.values()) <= {1} for state in engine.states.values())


def test_the_writer_leaves_copies_to_the_thread_that_goes_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It runs at a low priority, and an update would have to wait for it."""
    run, names = Run("qwen3", None, ALL_UNITS), []

    def copy(*args: Any) -> StateCopy:
        names.append(threading.current_thread().name)
        return StateCopy(*args)

    monkeypatch.setattr("slideformer.engine.snapshot.StateCopy", copy)
    with run.engine(tmp_path) as engine:
        run.train(engine, 0, SAVED)
        with saving_meanwhile(engine, tmp_path):
            pass
    assert names == ["snapshot"] * len(engine.states)


def test_memory_for_copies_comes_back(tmp_path: Path):
    run = Run("qwen3", 0.5, ALL_UNITS)
    with run.engine(tmp_path) as engine:
        free = len(engine._snapshot_memory._free)
        for step in range(1, 4):
            run.train(engine, step - 1, step)
            with saving_meanwhile(engine, tmp_path):
                pass
            assert len(engine._snapshot_memory._free) == free == len(engine.states)


def test_engine_refuses_a_second_snapshot_at_once(tmp_path: Path):
    with Run("qwen3", 0.5, 0).engine(tmp_path) as engine:
        engine.begin_snapshot()
        with pytest.raises(AssertionError, match="one snapshot at a time"):
            engine.begin_snapshot()


# ---- failures


@pytest.mark.timeout(60)
@pytest.mark.parametrize("copies", [ALL_UNITS, 1, 0])
def test_a_writer_that_fails_holds_nobody_up(copies: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, states = Run("qwen3", None, copies), at_a_standstill("qwen3", None)[1]
    monkeypatch.setattr("slideformer.storage.checkpoint.write_tensors", _full_disk)
    with run.engine(tmp_path) as engine:
        run.train(engine, 0, SAVED)
        with pytest.raises(CheckpointError, match="No space left"), saving_meanwhile(engine, tmp_path):
            pass
        run.train(engine, SAVED, LAST)
        assert differences(states_of(engine), states) == []


def _full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("copies", [ALL_UNITS, 0])
def test_an_engine_that_is_closed_meanwhile_holds_no_writer_up(copies: int, tmp_path: Path):
    run = Run("qwen3", 0.5, copies, seed=3)
    with ThreadPoolExecutor(1) as pool:
        with run.engine(tmp_path) as engine:
            run.train(engine, 0, SAVED)
            engine.drain()
            run.train(engine, SAVED, SAVED + 1)  # its updates are still to come
            unit_states = engine.begin_snapshot().unit_states()
            written = pool.submit(write_checkpoint, tmp_path, SAVED, FACTS, unit_states)
        with pytest.raises(CheckpointError, match="given up"):
            written.result(timeout=30)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("failing", [SAVED, SAVED + 1])
def test_after_a_failed_update_what_is_whole_is_saved_and_nothing_else(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run, step, begun = Run("qwen3", 0.5, ALL_UNITS), LayerState.update, threading.Event()
    files, _ = at_a_standstill("qwen3", 0.5)

    def update(state: LayerState, gradient: torch.Tensor, reached: object, hyper: object) -> None:
        if hyper.step == failing and state.name.endswith("layers.2"):  # type: ignore[attr-defined]
            begun.wait(30)
            raise RuntimeError("injected")
        step(state, gradient, reached, hyper)  # type: ignore[arg-type]

    monkeypatch.setattr(LayerState, "update", update)
    with ThreadPoolExecutor(1) as pool, run.engine(tmp_path) as engine:
        run.train(engine, 0, SAVED)
        snapshot = engine.begin_snapshot()
        begun.set()
        written = pool.submit(write_checkpoint, tmp_path, SAVED, FACTS, snapshot.unit_states())
        with pytest.raises(WorkerFailed):
            run.train(engine, SAVED, LAST)
        snapshot.end_of_updates()
        if failing == SAVED:
            with pytest.raises(CheckpointError, match=r"before (shell|model.layers.[2-5]) was updated"):
                written.result(timeout=30)
        else:
            assert contents(written.result(timeout=30)) == files


@pytest.mark.timeout(60)
def test_a_record_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = Run("qwen3", None, ALL_UNITS, on_disk=BLOCKS)
    with run.engine(tmp_path) as engine, ThreadPoolExecutor(1) as pool:
        run.train(engine, 0, SAVED)
        engine.drain()
        engine._records.files.rest._sums["model.layers.3"] = 1  # type: ignore[union-attr]
        snapshot = engine.begin_snapshot()
        written = pool.submit(write_checkpoint, tmp_path, SAVED, FACTS, snapshot.unit_states())
        with pytest.raises(DiskError, match="model.layers.3"):
            written.result(timeout=30)


class Injected(Exception):
    """No error of the project's."""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", range(12))
def test_a_copy_that_fails_is_told_and_nothing_hangs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ahead, or for the writer, it costs the checkpoint; before an update it fails the step, as any error there."""
    calls, threads, after = itertools.count(), set(threading.enumerate()), number % 2 == 1

    def copy(*args: Any) -> StateCopy:
        due = next(calls) == number // 2
        if due and not after:
            raise Injected
        made = StateCopy(*args)
        if due:
            raise Injected
        return made

    run = Run("qwen3", (None, 0.5)[number % 2], ALL_UNITS, seed=number)
    states = at_a_standstill("qwen3", run.max_norm)[1]
    monkeypatch.setattr("slideformer.engine.snapshot.StateCopy", copy)
    with run.engine(tmp_path) as engine:
        run.train(engine, 0, SAVED)
        with pytest.raises((Injected, WorkerFailed)) as told, saving_meanwhile(engine, tmp_path):
            run.train(engine, SAVED, LAST)
        if told.type is Injected:
            run.train(engine, engine._pending.pending.hyper.step if engine._pending else 0, LAST)
            assert differences(states_of(engine), states) == []
            assert len(engine._snapshot_memory._free) == len(engine.states)
        else:
            assert isinstance(told.value.__cause__, Injected)
    assert set(threading.enumerate()) == threads
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".") or "checkpoint" in path.name]
