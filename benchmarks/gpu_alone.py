"""A step beside the same step with a window that is fed from nowhere: what copies and the CPU cost the GPU's work.

    python benchmarks/gpu_alone.py --shape llama-3.1-8b --sequences 32 --gpu-budget 24GiB --host-budget 120GiB

One engine, one process, two turns. *Whole* is training. *GPU alone* computes the same: every kernel runs, but blocks
are not copied into the window, gradients are not sent, and the CPU updates nothing, so that nothing is waited for; its
numbers are meaningless. Head and embedding rows still come. Both are timed until the GPU, and in the first turn the
last update, is done.
"""

import argparse
import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from machine_rates import rates_of
from shapes import SHAPES

from slideformer.bench.case import Case
from slideformer.bench.sliding import Subject, enforce
from slideformer.engine.engine import Engine
from slideformer.engine.random_weights import random_weights
from slideformer.metrics import host_peak_bytes
from slideformer.streams import lanes_for
from slideformer.units import GIB, parse_bytes


@contextmanager
def fed_from_nowhere(engine: Engine) -> Iterator[None]:
    """No byte of a layer crosses the link, and AdamW returns at once."""

    def nothing(*_: Any, **__: Any) -> None:
        pass

    with (
        patch.object(engine._machinery.window, "_copy_weights", nothing),
        patch("slideformer.memory.gradients.copy_async", nothing),
        patch("slideformer.optim.adamw._core.adamw", nothing),
    ):
        yield


def seconds_of(subject: Subject, engine: Engine, first: int, steps: int) -> float:
    """Of a step, after one that is not counted."""
    batches = [subject.batch(number) for number in range(first, first + steps + 1)]
    subject.step(engine, batches[0], first)
    engine.drain()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for number, batch in enumerate(batches[1:], first + 1):
        subject.step(engine, batch, number)
    engine.drain()
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) / steps


def measure(case: Case) -> dict[str, Any]:
    subject = Subject(case)
    enforce(case.gpu_budget_bytes)
    plan = subject.plan(case.sequences)
    with subject.engine(plan, lanes_for(subject.device)) as engine:
        engine.load(random_weights(engine, subject.config, 0))
        torch.cuda.reset_peak_memory_stats()
        whole = seconds_of(subject, engine, 1, case.steps)
        peak = torch.cuda.max_memory_allocated()
        with fed_from_nowhere(engine):
            alone = seconds_of(subject, engine, case.steps + 2, case.steps)
    return {
        "parameters": plan.model.parameters,
        "step_seconds": whole,
        "gpu_alone_seconds": alone,
        "ratio": alone / whole,
        "tokens_per_second": case.tokens / whole,
        "predicted_seconds": plan.timing and plan.timing.seconds,
        "gpu_allocated_gib": peak / GIB,
        "gpu_planned_gib": plan.device_peak_bytes / GIB,
        "host_peak_gib": host_peak_bytes() / GIB,
        "host_planned_gib": plan.host_peak_bytes / GIB,
        "sizes": plan.as_json()["sizes"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-3.1-8b", choices=SHAPES)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--gpu-budget")
    parser.add_argument("--host-budget")
    parser.add_argument("--clip", action="store_true")
    parser.add_argument(
        "--rates", help="a machine's file, or probe: measure this one first; choose the plan by seconds"
    )
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    gpu, host = (parse_bytes(text) if text else None for text in (a.gpu_budget, a.host_budget))
    case = Case(
        a.shape, a.sequences, a.length, a.steps, gpu_budget_bytes=gpu, host_budget_bytes=host, clipping=a.clip,
        rates=rates_of(a.rates), device="cuda",
    )  # fmt: skip
    result = measure(case)
    print(
        f"{a.shape}, {a.sequences} x {a.length}: step {result['step_seconds']:.3f} s "
        f"({result['tokens_per_second']:,.0f} tokens/s), GPU alone {result['gpu_alone_seconds']:.3f} s, "
        f"ratio {result['ratio']:.3f}; GPU {result['gpu_allocated_gib']:.2f} GiB "
        f"(plan {result['gpu_planned_gib']:.2f}), host {result['host_peak_gib']:.1f} "
        f"(plan {result['host_planned_gib']:.1f})"
    )
    if a.json:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        machine = {"gpu": torch.cuda.get_device_name(), "cpu": platform.processor(), **versions}
        command = ["benchmarks/gpu_alone.py", *(f"--{k} {v}" for k, v in vars(a).items() if v and k != "json")]
        a.json.write_text(json.dumps({"command": command, "machine": machine, "result": result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
