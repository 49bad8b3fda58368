"""Promise "race-tested": adversarial timing changes no bit, and each single wait in the source is there for a reason.

Work is run at moments drawn from a seed (`schedule_fuzzer`). A wait is left out by naming the line that calls it; then
some seed must change a loss, a norm or a state, or raise.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from tiny_runs import SIZES, Subject, batch_at, hyper_at, make_records, same_bits, states_of, subject, tiny_engine

import slideformer
from slideformer.engine.inference import InferenceEngine
from slideformer.engine.sampling import Decoding
from slideformer.lanes.fuzzer import FORWARDING, Scheduler, fuzzed_lanes
from slideformer.lanes.lanes import Lanes, inline_lanes
from slideformer.layout import FlatLayout
from slideformer.memory.embedding import EmbeddingTable
from slideformer.memory.feed import TokenFeed
from slideformer.memory.gradients import copy_async
from slideformer.memory.host import HostAllocator, LayerState
from slideformer.models.architecture import Decoder
from slideformer.models.freezing import frozen_names
from slideformer.plan.sizes import InferenceSizes, Sizes

STEPS = 3
RECORDS = make_records(12)
SEEDS = range(20)
MOST_SEEDS = 60  # until a wait that is left out is noticed; none needed more than 4

Outcome = dict[str, Any]  # of tensors or tuples of tensors


@cache
def tiny(family: str) -> Subject:
    return subject(tiny_model(family, vocab_size=64, hidden_size=16, intermediate_size=24, head_dim=4))


@cache
def frozen(family: str, *patterns: str) -> Subject:
    """Without an update of the embedding to wait for, a step begins while others still run."""
    model = tiny(family).model
    freeze = partial(frozen_names, frozen=patterns)
    return Subject(model, Decoder(model.config, torch.device("cpu"), freeze=freeze))


@dataclass(frozen=True)
class Training:
    """A few steps. Their losses and norms are read at once, with an evaluation in between, or each a step late."""

    family: str
    max_norm: float | None
    sizes: Sizes
    late: bool = False
    dtype: torch.dtype = torch.float32
    of: Callable[[str], Subject] = tiny

    def __call__(self, lanes: Lanes) -> Outcome:
        with (
            TemporaryDirectory() as directory,
            tiny_engine(self.of(self.family), self.sizes, self.dtype, lanes, offload_dir=Path(directory)) as engine,
        ):
            seen: list[float] = []
            results = []
            for step in range(1, STEPS + 1):
                results.append(engine.train_step(batch_at(SHORT, 4, step), hyper_at(step), self.max_norm))
                if len(results) > self.late:
                    first = results.pop(0)
                    seen += [first.loss, first.grad_norm]
                if step == 2 and not self.late:
                    seen.append(engine.evaluate([batch_at(SHORT, 4, k) for k in range(2)]).loss)
            return {"seen": torch.tensor(seen, dtype=torch.float64), **states_of(engine)}


SHORT = [{k: [t if t < 0 else t % 64 for t in v[:9]] for k, v in record.items()} for record in RECORDS]


def gathers(lanes: Lanes) -> Outcome:
    """Rows of an embedding table, twice in a row."""
    allocator = HostAllocator(pin=False)
    state = LayerState("embedding", FlatLayout({"weight": (32, 8)}), allocator, pin_lo=False, threads=1)
    state.load("weight", torch.arange(256.0).view(32, 8))
    table = EmbeddingTable(lanes, allocator, state, max_rows=8, dtype=torch.float32)
    copies = [torch.zeros(4, 8) for _ in range(3)]
    for k, copy in enumerate(copies):
        rows, _ = table.gather(torch.arange(4) + 4 * k)
        lanes.compute.run(copy_async, rows, copy)
    lanes.compute.record().wait()
    return {str(k): copy for k, copy in enumerate(copies)}


def feeds(lanes: Lanes) -> Outcome:
    """Token ids, twice in a row."""
    feed = TokenFeed(lanes, HostAllocator(pin=False), capacity=16)
    copies = [torch.zeros(16, dtype=torch.int64) for _ in range(3)]
    for k, copy in enumerate(copies):
        (ids,) = feed.send([torch.arange(16) + k])
        lanes.compute.run(copy_async, ids, copy)
    lanes.compute.record().wait()
    return {str(k): copy for k, copy in enumerate(copies)}


def generates(lanes: Lanes) -> Outcome:
    """Two groups of prompts, four tokens each."""
    of = tiny("mistral")
    start = dict(of.model.named_parameters())
    with InferenceEngine(of.decoder, InferenceSizes(2, 2, 2, max_length=5), torch.float32, lanes) as engine:
        engine.load((u, {n: start[n].detach() for n in names}) for u, names in engine.parameter_groups().items())
        answers = engine.generate([[3, 4, 5], [6], [7, 8], [9]], Decoding(4))
    return {str(k): torch.tensor(answer) for k, answer in enumerate(answers)}


TIGHT = replace(SIZES, max_length=9, host_boundaries=3, window_depth=2, gradient_slots=2)
CLIPPED = replace(TIGHT, gradient_slots=3)
SCENARIOS: dict[str, Callable[[Lanes], Outcome]] = {
    "tied": Training("qwen3", None, TIGHT),
    "tied, clipped": Training("qwen3", 0.5, CLIPPED),
    "untied, read late": Training("mistral", None, replace(TIGHT, host_boundaries=2), late=True),
    "untied, clipped, read late": Training(
        "mistral", 0.5, replace(CLIPPED, micro_batch_size=4, micro_batches=1), late=True
    ),
    "one block of each level": Training("qwen3", None, replace(TIGHT, host_boundaries=2, kept=1, kept_outputs=1)),
    "outputs in host memory": Training(
        "qwen3", None, replace(TIGHT, host_boundaries=0, host_outputs=99, host_output_bytes=2**18)
    ),  # a boundary that comes back would wait for the same
    "resident": Training("qwen3", None, replace(TIGHT, resident=1, resident_ends=True), dtype=torch.bfloat16),
    "resident, clipped": Training(
        "qwen3", 0.5, replace(CLIPPED, resident=2, resident_ends=True, resident_gradients=True), dtype=torch.bfloat16
    ),
    "resident, untied, read late": Training(
        "mistral", None, replace(TIGHT, resident=2, resident_ends=True), late=True, dtype=torch.bfloat16
    ),
    "resident, untied, clipped, frozen embedding": Training(
        "mistral",
        0.5,
        replace(CLIPPED, resident=3, resident_ends=True, resident_gradients=True),
        late=True,
        dtype=torch.bfloat16,
        of=lambda family: frozen(family, "embed"),
    ),
    "resident head, clipped, the rest frozen": Training(
        "mistral",
        0.5,
        replace(CLIPPED, resident_ends=True, resident_gradients=True),
        late=True,
        dtype=torch.bfloat16,
        of=lambda family: frozen(family, "embed", "layers", "norm"),
    ),
    "tied head in shards": Training("qwen3", None, replace(TIGHT, head_shards=3)),
    "untied head in shards, clipped, read late": Training("mistral", 0.5, replace(CLIPPED, head_shards=3), late=True),
    "weights and boundaries on disk": Training(
        "qwen3", None, replace(TIGHT, disk_blocks=3, disk_weight_blocks=3, disk_boundaries=2, disk_buffers=1)
    ),
    "weights and boundaries on disk, clipped, read late": Training(
        "mistral",
        0.5,
        replace(CLIPPED, disk_blocks=3, disk_weight_blocks=2, disk_boundaries=3, disk_buffers=2),
        late=True,
        dtype=torch.bfloat16,
    ),
    "gathers": gathers,
    "feeds": feeds,
    "generates": generates,
}


@cache
def expected(scenario: str) -> Outcome:
    return SCENARIOS[scenario](inline_lanes(torch.device("cpu")))


@cache
def run(scenario: str, seed: int, ignored_wait: str | None = None) -> tuple[Outcome, Scheduler]:
    lanes, scheduler = fuzzed_lanes(seed, ignored_wait)
    return SCENARIOS[scenario](lanes), scheduler


def same(one: Outcome, other: Outcome) -> bool:
    def tensors(outcome: Outcome) -> list[torch.Tensor]:
        return [tensor for value in outcome.values() for tensor in (value if isinstance(value, tuple) else (value,))]

    return all(map(same_bits, tensors(one), tensors(other)))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_timing_changes_no_bit(scenario: str):
    for seed in SEEDS:
        assert same(run(scenario, seed)[0], expected(scenario)), f"seed {seed}"


# ---- each wait

WAITS = {"wait", "wait_until", "_wait_until", "wait_fresh", "_wait_fresh", "wait_done", "wait_updated"}


def waits_in_source() -> Iterator[str]:
    """file.py:line of each call that waits for a lane or the worker, those left out that pass on their caller's."""
    package = Path(slideformer.__file__).parent
    for file in sorted([*package.glob("memory/*.py"), *package.glob("engine/*.py")]):
        for line in sorted(waits_below(ast.parse(file.read_text()))):
            yield f"{file.name}:{line}"


def waits_below(node: ast.AST) -> set[int]:
    if isinstance(node, ast.Lambda) or (isinstance(node, ast.FunctionDef) and node.name in FORWARDING):
        return set()
    lines = set().union(*map(waits_below, ast.iter_child_nodes(node)))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in WAITS:
        lines.add(node.lineno)
    return lines


@pytest.mark.parametrize("site", list(waits_in_source()))
def test_leaving_out_any_one_wait_is_noticed(site: str):
    assert any(is_noticed(scenario, seed, site) for seed in range(MOST_SEEDS) for scenario in SCENARIOS)


def is_noticed(scenario: str, seed: int, ignored_wait: str) -> bool:
    try:
        return not same(run(scenario, seed, ignored_wait)[0], expected(scenario))
    except Exception:  # whatever numbers that are not there yet lead to
        return True


def test_the_fuzzer_meets_every_wait():
    met = set().union(*(run(scenario, seed)[1].wait_sites for seed in SEEDS for scenario in SCENARIOS))
    assert {site for site in met if not site.startswith("test_")} == set(waits_in_source())
