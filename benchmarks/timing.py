"""Predicted against measured seconds of a step.

    python benchmarks/timing.py recorded                 # an H200's results in benchmarks/results, from its rates
    python benchmarks/timing.py here [--json out.json]   # this machine: probe, then small models, in one run

`recorded` needs no GPU. Its rates (examples/machines/h200-16-cores.json) were measured one by one, on machines of the
same kind, and not in the run that is predicted. `here` probes anew and trains random models through the engine; steps
are medians, after one that is not counted.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from shapes import SHAPES
from transformers import LlamaConfig

from slideformer.data.batches import Batch, collate
from slideformer.data.examples import Example
from slideformer.engine.block_calls import block_call_seconds
from slideformer.engine.engine import Engine
from slideformer.engine.measure import measure_work, model_sizes
from slideformer.engine.operations import count_operations
from slideformer.engine.random_weights import random_weights
from slideformer.models.architecture import Decoder
from slideformer.optim.adamw import AdamWStep
from slideformer.plan.machine import Machine, resident_bytes
from slideformer.plan.operations import full_step
from slideformer.plan.plan import Workload
from slideformer.plan.planner import make_plan
from slideformer.plan.probe import probe
from slideformer.plan.rates import MachineRates, read_machine
from slideformer.plan.sizes import Sizes
from slideformer.plan.timing import StepTiming, predict

ROOT = Path(__file__).parent.parent
H200 = ROOT / "examples/machines/h200-16-cores.json"
RECORDED = "*-h200-step-*.json"
SMALL = {
    "wide": lambda: LlamaConfig(
        hidden_size=768, intermediate_size=2048, num_hidden_layers=6, num_attention_heads=12, num_key_value_heads=4,
        vocab_size=8192, tie_word_embeddings=True,
    ),
    "deep": lambda: LlamaConfig(
        hidden_size=384, intermediate_size=1024, num_hidden_layers=16, num_attention_heads=6, num_key_value_heads=6,
        vocab_size=8192, tie_word_embeddings=False,
    ),
    "smollm2-135m": SHAPES["smollm2-135m"],
}  # fmt: skip
CASES = [("wide", 8, 128, False), ("deep", 4, 256, True), ("smollm2-135m", 4, 128, False)]


@dataclass(frozen=True)
class Row:
    """One case, in seconds of a step."""

    case: str
    measured: float
    timing: StepTiming

    @property
    def deviation(self) -> float:
        return self.timing.seconds / self.measured - 1

    def __str__(self) -> str:
        lanes = ", ".join(f"{lane} {seconds:.3f}" for lane, seconds in self.timing.lanes.items())
        return (
            f"{self.case:<36} measured {self.measured:6.3f} s, predicted {self.timing.seconds:6.3f} s "
            f"({self.deviation:+.1%}), bound by {self.timing.bound}; {lanes}"
        )


def recorded() -> Iterator[Row]:
    """The sliding engine's results of an H200."""
    rates, dtype = read_machine(H200), torch.bfloat16
    for path in sorted((ROOT / "benchmarks/results").glob(RECORDED)):
        for result in json.loads(path.read_text())["results"]:
            if result["system"] == "sliding":
                decoder = Decoder(SHAPES[result["shape"]](), torch.device("cpu"), "sdpa")
                tokens = full_step(result["sequences"], result["length"])
                timing = predicted(decoder, Sizes(**result["plan"]), tokens, rates, dtype, result["clip"], fused=True)
                clipped = ", clipped" if result["clip"] else ""
                yield Row(
                    f"{result['shape']} {result['sequences']} x {result['length']}{clipped}",
                    result["step_seconds"],
                    timing,
                )


def here(rates: MachineRates, steps: int) -> Iterator[Row]:
    """Small models, trained in fp32 on this machine's CPU."""
    for name, sequences, length, clip in CASES:
        decoder = Decoder(SMALL[name](), torch.device("cpu"), "sdpa")
        dtype = torch.float32
        host = Machine.measure(decoder.device).host_bytes
        plan = make_plan(
            model_sizes(decoder), measure_work(decoder, length, dtype), Workload(sequences, length, clip), dtype,
            host, None, resident_bytes(),
        )  # fmt: skip
        timing = predicted(decoder, plan.sizes, full_step(sequences, length), rates, dtype, clip, fused=False)
        measured = step_seconds(decoder, plan.sizes, sequences, length, clip, steps)
        yield Row(f"{name} {sequences} x {length}{', clipped' if clip else ''}", measured, timing)


def predicted(decoder: Decoder, sizes: Sizes, tokens: Any, rates: Any, dtype: Any, clip: bool, fused: bool):
    operations = count_operations(decoder, dtype, fused)
    assert operations is not None
    return predict(model_sizes(decoder), operations, sizes, tokens, rates, dtype, clip, steps=1)


def step_seconds(decoder: Decoder, sizes: Sizes, sequences: int, length: int, clip: bool, steps: int) -> float:
    """The median step, each up to its last update but one: the engine is drained only where it drains itself."""
    with Engine(decoder, sizes, torch.float32) as engine:
        engine.load(random_weights(engine, decoder.config, 0))
        seconds, last = [], time.perf_counter()
        for step in range(1, steps + 2):
            engine.train_step(
                batch(step, sequences, length), AdamWStep(1e-5, 0.9, 0.999, 1e-8, 0.0, step), 1.0 if clip else None
            )
            now = time.perf_counter()
            seconds.append(now - last)
            last = now
        return median(seconds[1:])


def batch(step: int, sequences: int, length: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, 8192, (sequences, length), generator=generator, dtype=torch.int32)
    return collate([Example(k, row, row) for k, row in enumerate(ids)], 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("recorded", "here"))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--json", type=Path, help="also write the results there")
    arguments = parser.parse_args()
    rates = read_machine(H200) if arguments.what == "recorded" else probe(Path("."), block_call_seconds)
    rows = []
    for row in recorded() if arguments.what == "recorded" else here(rates, arguments.steps):
        print(row, flush=True)
        rows.append(row)
    if arguments.json:
        results = [{"case": r.case, "measured_seconds": r.measured, **r.timing.as_json()} for r in rows]
        arguments.json.write_text(json.dumps({"machine": rates.as_json(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
