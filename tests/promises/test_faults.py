"""Promise "nothing lost": whatever fails inside, at whatever moment, the caller is told and nothing is left behind.

Each case is one interleaving of lanes and worker (`schedule_fuzzer`; every third one has a real worker thread) and one
fault in one named call (`injected_faults`), drawn from a seed: one a call in the suite, 500 by `make fault-test`.
"""

import gc
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from injected_faults import CALLS, FILE_CALLS, Fault, came_from, no_fault
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
)

from slideformer.engine import engine as engine_module
from slideformer.engine.durable import DurableState
from slideformer.engine.pretrained import Engine
from slideformer.engine.sampling import Decoding
from slideformer.errors import EngineFailed, SlideFormerError
from slideformer.lanes.fuzzer import fuzzed_lanes
from slideformer.lanes.lanes import Lanes, inline_lanes
from slideformer.memory import host
from slideformer.memory.host import HostAllocator, LayerState
from slideformer.plan.sizes import Sizes
from slideformer.storage.checkpoint import write_checkpoint
from slideformer.storage.manifest import Data, RunFacts

CASES, IN_THE_SUITE = 500, len(CALLS)
FACTS = RunFacts(
    steps=3, dtype="fp32", micro_batch_size=2, data=Data(records=1, sha256="0" * 64), versions={}, config={}
)  # fmt: skip
RECORDS = [
    {name: [t if t < 0 else t % 64 for t in values[:9]] for name, values in record.items()}
    for record in make_records(12)
]
TIGHT = replace(SIZES, max_length=9, host_boundaries=2, kept=1, window_depth=2, gradient_slots=2)
CLIPPED = replace(TIGHT, gradient_slots=3)


@dataclass(frozen=True)
class Journey:
    """Everything an engine is asked in a run: load, steps, an evaluation, answers, a checkpoint, a saved model."""

    family: str
    max_norm: float | None
    sizes: Sizes

    def on(self, lanes: Lanes) -> Engine:
        return Engine(tiny(self.family).decoder, self.sizes, torch.float32, lanes, threads=1)

    def go(self, engine: Engine, directory: Path) -> list[float]:
        """What was seen on the way."""
        load(engine, tiny(self.family))
        seen, results = [], [self._step(engine, step) for step in (1, 2)]
        for result in results:
            seen += [result.loss, result.grad_norm]
        seen.append(engine.evaluate([batch_at(RECORDS, 4, k) for k in range(2)]).loss)
        seen += [token for answer in engine.generate([[3, 4, 5], [6], [7, 8]], Decoding(3)) for token in answer]
        return seen + self.end(engine, directory)

    def end(self, engine: Engine, directory: Path) -> list[float]:
        """From the checkpoint on."""
        write_checkpoint(directory, 2, FACTS, engine.unit_states())
        engine.save_pretrained(directory)
        result = self._step(engine, 3)
        return [result.loss, result.grad_norm]

    def _step(self, engine: Engine, step: int) -> Any:
        return engine.train_step(batch_at(RECORDS, 4, step), hyper_at(step), self.max_norm)


JOURNEYS = [
    Journey("qwen3", None, TIGHT),
    Journey("qwen3", 0.5, CLIPPED),
    Journey("mistral", None, TIGHT),
    Journey("mistral", 0.5, replace(CLIPPED, micro_batch_size=4, micro_batches=1)),
]


@cache
def tiny(family: str) -> Subject:
    return subject(tiny_model(family, vocab_size=64, hidden_size=16, intermediate_size=24, head_dim=4))


def load(engine: Engine, of: Subject) -> None:
    start = dict(of.model.named_parameters())
    engine.load((u, {n: start[n].detach() for n in names}) for u, names in engine.parameter_groups().items())


class Cudart:
    """Stands in for the CUDA runtime: knows what is registered."""

    def __init__(self) -> None:
        self.registered: set[int] = set()

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802
        self.registered.add(address)
        return 0

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        self.registered.remove(address)
        return 0


@pytest.fixture(autouse=True)
def cudart(monkeypatch: pytest.MonkeyPatch) -> Cudart:
    fake = Cudart()
    monkeypatch.setattr(host, "_cudart", lambda: fake)
    monkeypatch.setattr(engine_module, "HostAllocator", lambda pin: HostAllocator(pin=True))
    return fake


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, cudart: Cudart) -> Iterator[None]:
    """No thread, no pinned buffer, no memory, no temporary file outlives an engine."""
    threads = set(threading.enumerate())
    yield
    gc.collect()
    assert set(threading.enumerate()) == threads
    assert cudart.registered == set()
    assert [path.name for path in tmp_path.rglob("*") if path.name.startswith(".") or "partial" in path.name] == []
    assert not [one for one in ENGINES if one() is not None]


ENGINES: list[weakref.ref[Engine]] = []


@cache
def expected(journey: Journey) -> tuple[list[float], Any, dict[str, int]]:
    """What is seen on the way, the states at its end, and how often each named call comes."""
    from tempfile import TemporaryDirectory

    inline = inline_lanes(torch.device("cpu"))
    with TemporaryDirectory() as directory, no_fault().injected() as fault, journey.on(inline) as engine:
        return journey.go(engine, Path(directory)), states_of(engine), fault.counts


def lanes_of(seed: int) -> Lanes:
    return inline_lanes(torch.device("cpu")) if seed % 3 == 0 else fuzzed_lanes(seed)[0]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "seed", [pytest.param(s, marks=[pytest.mark.slow] if s >= IN_THE_SUITE else []) for s in range(CASES)]
)
def test_a_fault_is_told_and_leaves_nothing_behind(seed: int, tmp_path: Path):
    journey = JOURNEYS[seed // len(CALLS) % len(JOURNEYS)]
    fault = Fault.drawn(seed, expected(journey)[2])
    with fault.injected():
        try:
            engine = journey.on(lanes_of(seed))
        except BaseException as error:
            assert came_from(error, fault.error)
            return
        with engine:
            ENGINES.append(weakref.ref(engine))
            went_well = run(journey, engine, fault, tmp_path)
        engine.close()  # a second time does no harm
        del engine
    assert went_well or fault.reached
    fresh(journey, tmp_path / "again")


def run(journey: Journey, engine: Engine, fault: Fault, directory: Path) -> bool:
    """Whether all went well; then every bit is right. Else the caller was told, and the engine refuses to go on."""
    seen, states, _ = expected(journey)
    try:
        found = journey.go(engine, directory)
        same = found == seen and not differences(states_of(engine), states)
        assert same and not fault.reached
        return True
    except AssertionError:
        raise
    except BaseException as error:
        assert fault.reached and came_from(error, fault.error), error
        assert error is fault.error or isinstance(error, SlideFormerError)
    if fault.name in FILE_CALLS:
        assert journey.end(engine, directory) == seen[-2:] and not differences(states_of(engine), states)
    else:
        refuses(journey, engine, fault)
    return False


def _whole(state: DurableState) -> dict[str, torch.Tensor]:
    assert isinstance(state, LayerState)  # nothing of these engines is on disk
    return state.tensors()


def refuses(journey: Journey, engine: Engine, fault: Fault) -> None:
    """Nothing more is done, and nothing changes, also once the engine is closed."""
    with pytest.raises(BaseException) as told:
        engine.train_step(batch_at(RECORDS, 4, 3), hyper_at(3), journey.max_norm)
    assert isinstance(told.value, EngineFailed) or came_from(told.value, fault.error)
    engine.close()
    before = [tensor.clone() for state in engine.states.values() for tensor in _whole(state).values()]
    for ask in (
        lambda: engine.train_step(batch_at(RECORDS, 4, 3), hyper_at(3), journey.max_norm),
        lambda: engine.evaluate([batch_at(RECORDS, 4, 0)]),
        lambda: engine.generate([[3]], Decoding(1)),
        engine.drain,
        engine.unit_states,
    ):
        with pytest.raises(EngineFailed):
            ask()
    after = [tensor for state in engine.states.values() for tensor in _whole(state).values()]
    assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(before, after, strict=True))


def fresh(journey: Journey, directory: Path) -> None:
    """Another engine of the same model, in the same process, gives the right bits."""
    with journey.on(inline_lanes(torch.device("cpu"))) as engine:
        seen, states, _ = expected(journey)
        assert journey.go(engine, directory) == seen and not differences(states_of(engine), states)


@pytest.mark.parametrize("journey", JOURNEYS, ids=lambda journey: f"{journey.family}, {journey.max_norm}")
def test_every_named_call_is_made(journey: Journey):
    missing = {name for name, count in expected(journey)[2].items() if not count}
    assert missing <= {"replace"}
