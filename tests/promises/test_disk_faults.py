"""Promise "nothing lost", where states, weights and boundaries are on disk: whatever fails is told, nothing is left.

As `test_faults.py`: an interleaving of lanes and worker and a fault in one named call, both drawn from a seed.
"""

import gc
import os
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from injected_faults import DISK_CALLS, Fault, came_from, no_fault
from tiny_models import tiny_model
from tiny_runs import SIZES, Subject, batch_at, differences, hyper_at, make_records, states_of, subject

from slideformer.engine.engine import Engine
from slideformer.engine.sampling import Decoding
from slideformer.errors import EngineFailed, SlideFormerError
from slideformer.plan.sizes import Sizes
from slideformer.schedule_fuzzer import fuzzed_lanes
from slideformer.storage.checkpoint import write_checkpoint
from slideformer.storage.manifest import Data, RunFacts
from slideformer.streams import Lanes, inline_lanes

BLOCKS, ROUNDS, IN_THE_SUITE = 4, 12, 3
FACTS = RunFacts(
    steps=3, dtype="fp32", micro_batch_size=2, data=Data(records=1, sha256="0" * 64), versions={}, config={}
)  # fmt: skip
RECORDS = [
    {name: [t if t < 0 else t % 64 for t in values[:9]] for name, values in record.items()}
    for record in make_records(12)
]
ALL = replace(
    SIZES, max_length=9, host_boundaries=4, disk_boundaries=3, disk_blocks=BLOCKS, disk_weight_blocks=3,
    gradient_slots=BLOCKS, disk_buffers=2,
)  # fmt: skip


@dataclass(frozen=True)
class Journey:
    """Everything an engine is asked in a run: load, steps, an evaluation, answers, a checkpoint."""

    max_norm: float | None
    sizes: Sizes

    def on(self, lanes: Lanes, directory: Path) -> Engine:
        return Engine(tiny().decoder, self.sizes, torch.float32, lanes, threads=1, offload_dir=directory)

    def go(self, engine: Engine, directory: Path) -> list[float]:
        """What was seen on the way."""
        start = dict(tiny().model.named_parameters())
        engine.load((u, {n: start[n].detach() for n in names}) for u, names in engine.parameter_groups().items())
        results = [self._step(engine, step) for step in (1, 2)]
        seen = [value for result in results for value in (result.loss, result.grad_norm)]
        seen.append(engine.evaluate([batch_at(RECORDS, 4, k) for k in range(2)]).loss)
        seen += [token for answer in engine.generate([[3, 4, 5], [6], [7, 8]], Decoding(3)) for token in answer]
        write_checkpoint(directory, 2, FACTS, engine.unit_states())
        result = self._step(engine, 3)
        return [*seen, result.loss, result.grad_norm]

    def _step(self, engine: Engine, step: int) -> Any:
        return engine.train_step(batch_at(RECORDS, 4, step), hyper_at(step), self.max_norm)


JOURNEYS = [Journey(None, ALL), Journey(0.5, replace(ALL, disk_buffers=4)), Journey(0.5, replace(ALL, disk_buffers=1))]


@cache
def tiny() -> Subject:
    shape = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "head_dim": 4}
    return subject(tiny_model("qwen3", num_hidden_layers=BLOCKS, **shape))


@cache
def expected(journey: Journey) -> tuple[list[float], Any, Counter[str]]:
    """What is seen on the way, the states at its end, and how often each named call comes, about."""
    with TemporaryDirectory() as directory, no_fault(DISK_CALLS).injected() as fault:  # noqa: SIM117
        with journey.on(inline_lanes(torch.device("cpu")), Path(directory)) as engine:
            return journey.go(engine, Path(directory)), states_of(engine), fault.counts


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """No thread, no open file and no file without a name outlives an engine."""
    for journey in JOURNEYS:
        expected(journey)
    threads, files = set(threading.enumerate()), set(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert set(threading.enumerate()) == threads and set(os.listdir("/proc/self/fd")) == files
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("checkpoint")] == []


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", DISK_CALLS)
@pytest.mark.parametrize(
    "round_", [pytest.param(k, marks=[pytest.mark.slow] if k >= IN_THE_SUITE else []) for k in range(ROUNDS)]
)
def test_a_fault_is_told_and_leaves_nothing_behind(round_: int, name: str, tmp_path: Path):
    seed = round_ * len(DISK_CALLS) + list(DISK_CALLS).index(name)
    journey = JOURNEYS[round_ % len(JOURNEYS)]
    fault = Fault.drawn(seed, expected(journey)[2], DISK_CALLS)
    lanes = inline_lanes(torch.device("cpu")) if seed % 3 == 0 else fuzzed_lanes(seed)[0]
    with fault.injected():
        try:
            engine = journey.on(lanes, tmp_path)
        except BaseException as error:
            assert came_from(error, fault.error)
            return
        with engine:
            went_well = run(journey, engine, fault, tmp_path)
        engine.close()  # a second time does no harm
    assert went_well or fault.reached


def run(journey: Journey, engine: Engine, fault: Fault, directory: Path) -> bool:
    """Whether all went well; then every bit is right. Else the caller was told, and the engine refuses to go on."""
    seen, states, _ = expected(journey)
    try:
        found = journey.go(engine, directory)
        engine.drain()
        after = states_of(engine)
    except BaseException as error:
        assert fault.reached and came_from(error, fault.error), error
        assert error is fault.error or isinstance(error, SlideFormerError)
        refuses(engine, fault)
        return False
    assert found == seen and not differences(after, states)
    return True


def refuses(engine: Engine, fault: Fault) -> None:
    """Nothing more is done, unless what failed was writing a checkpoint."""
    for ask in (lambda: engine.train_step(batch_at(RECORDS, 4, 3), hyper_at(3)), engine.drain):
        try:
            ask()
        except BaseException as error:
            assert isinstance(error, EngineFailed) or came_from(error, fault.error), error


@pytest.mark.parametrize("journey", JOURNEYS, ids=["two buffers", "four buffers", "one buffer"])
def test_every_named_call_is_made(journey: Journey):
    missing = {name for name in DISK_CALLS if not expected(journey)[2][name]}
    assert missing <= {"wait for it"}  # comes only where the disk is late
