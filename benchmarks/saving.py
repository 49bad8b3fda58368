"""What a checkpoint costs a run: steps alone, steps while one is written, and a standstill for one; then resuming.

    python benchmarks/saving.py --shape qwen3-4b --sequences 8 --steps 50 --directory DISK --json out.json
    python benchmarks/saving.py --shape tiny --device cpu --sequences 2 --length 64 --steps 20     # anywhere

Random weights. The three kinds take turns in one process, `--rounds` times: *alone* is `--steps` steps, before and
after *meanwhile*, which is the same with a checkpoint begun before the first of them; *still* is a checkpoint during
which nothing else happens. A checkpoint that is not durable after the last step of its turn is waited for, and the wait
counts. Overhead is what *meanwhile* takes longer than *alone*, over *alone*: that of one save every `--steps` steps. A
second process then resumes from the last checkpoint, timed from its start to the end of its first step.

Needs 12 bytes a parameter in `--directory` (qwen3-4b: 48 GB; one checkpoint at a time, the one before is deleted first)
and twice that in host memory, or less with `--copies`.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

BEGAN = time.time()  # before what takes seconds to import

import torch  # noqa: E402
from shapes import SHAPES  # noqa: E402
from transformers import LlamaConfig  # noqa: E402

from slideformer.data.batches import Batch, collate  # noqa: E402
from slideformer.data.examples import Example  # noqa: E402
from slideformer.engine.engine import Engine  # noqa: E402
from slideformer.engine.measure import measure_work, model_sizes  # noqa: E402
from slideformer.engine.random_weights import random_weights  # noqa: E402
from slideformer.kernels.liger import apply_liger, choose_kernels  # noqa: E402
from slideformer.metrics import host_peak_bytes  # noqa: E402
from slideformer.models.architecture import Decoder  # noqa: E402
from slideformer.optim.adamw import AdamWStep  # noqa: E402
from slideformer.plan.machine import Machine, resident_bytes  # noqa: E402
from slideformer.plan.plan import Plan, Workload  # noqa: E402
from slideformer.plan.planner import make_plan  # noqa: E402
from slideformer.plan.table import render  # noqa: E402
from slideformer.saving import give_way  # noqa: E402
from slideformer.storage.checkpoint import find_checkpoints, restore, write_checkpoint  # noqa: E402
from slideformer.storage.manifest import Data, RunFacts, read_manifest  # noqa: E402
from slideformer.units import GIB, parse_bytes  # noqa: E402

TINY = LlamaConfig(
    hidden_size=256, intermediate_size=688, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=4,
    vocab_size=4096, tie_word_embeddings=True,
)  # fmt: skip


class Case:
    """One model with its plan, and the steps it takes."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        self.config = TINY if arguments.shape == "tiny" else SHAPES[arguments.shape]()
        self.device = torch.device(arguments.device)
        self.dtype = torch.float32 if arguments.device == "cpu" else torch.bfloat16
        fused = apply_liger if choose_kernels("auto", self.device.type) == "liger" else None
        self.decoder = Decoder(self.config, self.device, "sdpa", fused)
        self.facts = RunFacts(
            steps=0, dtype="fp32" if arguments.device == "cpu" else "bf16", micro_batch_size=1, versions={}, config={},
            data=Data(records=1, sha256="0" * 64),
        )  # fmt: skip

    def plan(self) -> Plan:
        arguments, machine = self.arguments, Machine.measure(self.device)
        clip = arguments.clip
        workload = Workload(arguments.sequences, arguments.length, clip, saves_in_background=True)
        gpu = machine.allocatable_bytes(parse_bytes(arguments.gpu_budget) if arguments.gpu_budget else None)
        work = measure_work(self.decoder, arguments.length, self.dtype)
        model = model_sizes(self.decoder)
        plan = make_plan(model, work, workload, self.dtype, machine.host_bytes, gpu, resident_bytes())
        if arguments.copies is not None:
            plan = replace(plan, sizes=replace(plan.sizes, snapshot_units=arguments.copies))
        return plan

    def engine(self, plan: Plan) -> Engine:
        return Engine(self.decoder, plan.sizes, self.dtype)

    def batch(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(step)
        size = (self.arguments.sequences, self.arguments.length)
        ids = torch.randint(0, self.config.vocab_size, size, generator=generator, dtype=torch.int32)
        return collate([Example(k, row, row) for k, row in enumerate(ids)], 0)

    def step(self, engine: Engine, step: int) -> None:
        hyper = AdamWStep(1e-5, 0.9, 0.999, 1e-8, 0.0, step)
        engine.train_step(self.batch(step), hyper, 1.0 if self.arguments.clip else None)


class Turns:
    """The three kinds, with the step that they are at."""

    def __init__(self, case: Case, engine: Engine, directory: Path):
        self.case, self.engine, self.directory, self.at = case, engine, directory, 0

    def steps(self, count: int) -> tuple[list[float], float]:
        """Seconds from the end of one step's submission to the next, and then until all is updated."""
        ends = [time.perf_counter()]
        for _ in range(count):
            self.at += 1
            self.case.step(self.engine, self.at)
            ends.append(time.perf_counter())
        self.engine.drain()
        return [end - begin for begin, end in pairwise(ends)], time.perf_counter() - ends[-1]

    def alone(self) -> dict[str, Any]:
        """Fewer steps than the others may stand for as many, but all is updated only once."""
        arguments = self.case.arguments
        seconds, updating = self.steps(arguments.steps_alone or arguments.steps)
        return {"seconds": sum(seconds) * arguments.steps / len(seconds) + updating, **_steps_told(seconds)}

    def meanwhile(self) -> dict[str, Any]:
        self._make_room()
        began, saved_at = time.perf_counter(), []
        with ThreadPoolExecutor(1, initializer=give_way) as pool:
            units = self.engine.begin_snapshot().unit_states()
            written = pool.submit(self._write, units, self.at, lambda: saved_at.append(time.perf_counter()))
            seconds, _ = self.steps(self.case.arguments.steps)
            stepped = time.perf_counter()
            written.result()
        self.engine.end_snapshot()
        over = time.perf_counter()
        return {
            "seconds": over - began, "save_seconds": saved_at[0] - began, "waited_seconds": max(0.0, over - stepped),
            **_steps_told(seconds),
        }  # fmt: skip

    def still(self) -> dict[str, float]:
        self._make_room()
        began = time.perf_counter()
        self._write(self.engine.unit_states(), self.at, lambda: None)
        return {"seconds": time.perf_counter() - began}

    def _write(self, units: Any, step: int, then: Callable[[], None]) -> None:
        write_checkpoint(self.directory, step, self.case.facts, units)
        then()

    def _make_room(self) -> None:
        for path in find_checkpoints(self.directory):
            shutil.rmtree(path)


def _steps_told(seconds: list[float]) -> dict[str, Any]:
    return {"median_step": median(seconds), "longest_step": max(seconds), "step_seconds": seconds}


def save(arguments: argparse.Namespace) -> dict[str, Any]:
    """Rounds of the three kinds."""
    case = Case(arguments)
    plan = case.plan()
    print(render(plan), file=sys.stderr)
    with case.engine(plan) as engine:
        engine.load(random_weights(engine, case.config, 0))
        turns = Turns(case, engine, Path(arguments.directory))
        turns.steps(arguments.warm_up)
        kinds = ["alone", "meanwhile", "alone", *([] if arguments.without_still else ["still"])]
        found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
        for _ in range(arguments.rounds):
            for kind in kinds:
                found[kind].append(getattr(turns, kind)())
                told = {key: value for key, value in found[kind][-1].items() if key != "step_seconds"}
                print(f"{kind}: {told}", file=sys.stderr, flush=True)  # all there is if time runs out
    (path,) = find_checkpoints(Path(arguments.directory))
    alone = mean(turn["seconds"] for turn in found["alone"])
    return {
        "parameters": plan.model.parameters,
        "checkpoint_bytes": sum(file.stat().st_size for file in path.iterdir()),
        "snapshot_units": plan.sizes.snapshot_units,
        "units": len(plan.model.layouts),
        "copies_bytes": plan.host["checkpoint copies"],
        "alone_seconds": alone,
        "overhead_meanwhile": mean(turn["seconds"] for turn in found["meanwhile"]) / alone - 1,
        "overhead_still": mean(turn["seconds"] for turn in found["still"]) / alone if found.get("still") else None,
        "host_peak_gib": host_peak_bytes() / GIB,
        "turns": found,
    }


def resume(arguments: argparse.Namespace) -> dict[str, Any]:
    """From the process's start to the end of its first step."""
    case = Case(arguments)
    plan = case.plan()
    built = time.time()
    with case.engine(plan) as engine:
        allocated = time.time()
        (path,) = find_checkpoints(Path(arguments.directory))
        manifest = read_manifest(path)
        restore(path, manifest, engine.unit_states())
        restored = time.time()
        case.step(engine, manifest.step + 1)
        engine.drain()
    return {
        "until_planned": built - BEGAN, "until_allocated": allocated - BEGAN, "until_restored": restored - BEGAN,
        "until_first_step": time.time() - BEGAN,
    }  # fmt: skip


def told(result: dict[str, Any]) -> str:
    """The result in a few lines."""
    turns, gigabytes, resumed = result["turns"], result["checkpoint_bytes"] / 1e9, result["resume"]

    def steps(kind: str) -> str:
        middle = median(turn["median_step"] for turn in turns[kind])
        return f"{middle:.3f} s (longest {max(turn['longest_step'] for turn in turns[kind]):.3f})"

    def save(kind: str, key: str) -> str:
        seconds = median(turn[key] for turn in turns[kind])
        return f"{seconds:.2f} s ({gigabytes / seconds:.2f} GB/s)"

    still, still_overhead = "not measured", "not measured"
    if turns.get("still"):
        still, still_overhead = save("still", "seconds"), f"{result['overhead_still']:+.2%}"
    return (
        f"{result['parameters'] / 1e9:.3g}B parameters, checkpoint {gigabytes:.3g} GB, copies of "
        f"{result['snapshot_units']} of {result['units']} units, host peak {result['host_peak_gib']:.1f} GiB\n"
        f"step alone {steps('alone')}, meanwhile {steps('meanwhile')}\n"
        f"save meanwhile {save('meanwhile', 'save_seconds')}, {still} at a standstill\n"
        f"overhead of one save a turn: meanwhile {result['overhead_meanwhile']:+.2%}, "
        f"at a standstill {still_overhead}\n"
        f"from the start to the first resumed step: {resumed['until_first_step']:.1f} s "
        f"({', '.join(f'{key} {value:.1f}' for key, value in resumed.items())})"
    )


def in_a_process(part: str) -> dict[str, Any]:
    """This script again, for one part of it, so that memory and the clock begin anew."""
    command = [sys.executable, *sys.argv, "--part", part]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen3-4b", choices=[*SHAPES, "tiny"])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=50, help="between two checkpoints")
    parser.add_argument("--steps-alone", type=int, help="fewer for the comparison, to save time; by default as many")
    parser.add_argument("--without-still", action="store_true")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--gpu-budget", help="such as 24GiB")
    parser.add_argument("--copies", type=int, help="units held a second time; by default as many as fit")
    parser.add_argument("--clip", action="store_true")
    parser.add_argument("--directory", help="where checkpoints go; by default a temporary one")
    parser.add_argument("--json")
    parser.add_argument("--part", choices=["save", "resume"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps({"save": save, "resume": resume}[arguments.part](arguments)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        sys.argv += ["--directory", directory]
        result = in_a_process("save")
        result["resume"] = in_a_process("resume")
    print(told(result))
    if arguments.json:
        gpu = torch.cuda.get_device_name() if arguments.device == "cuda" else None
        machine = {"gpu": gpu, "cpu": platform.processor(), "torch": torch.__version__}
        Path(arguments.json).write_text(
            json.dumps({"command": sys.argv, "machine": machine, "result": result}, indent=1)
        )


if __name__ == "__main__":
    main()
