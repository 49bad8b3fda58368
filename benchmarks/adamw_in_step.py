"""AdamW inside a step against what host memory allows, and against itself alone and beside copies.

    python benchmarks/adamw_in_step.py --shape qwen3-4b --sequences 8 --gpu-budget 8GiB --rates probe

One engine, in turn: its blocks on the host updated one after the other with nothing else running; the same beside
copies that saturate the link one way and both ways; then steps. Every byte that passes host memory in a step is counted
where it is submitted: 26 a parameter by AdamW (fp32 moments, bf16 gradient), and what is copied. The floor is those
bytes over the most that passed host memory in any of the turns before.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from machine_rates import rates_of
from shapes import SHAPES
from torch import Tensor

from slideformer import _core
from slideformer.bench.case import Case
from slideformer.bench.sliding import Subject, enforce
from slideformer.engine.engine import Engine
from slideformer.engine.random_weights import random_weights
from slideformer.memory.gradients import copy_async
from slideformer.memory.host import HostAllocator, LayerState
from slideformer.optim.adamw import AdamWStep
from slideformer.plan.probe_link import COPY_BYTES, LinkProbe
from slideformer.streams import lanes_for
from slideformer.units import parse_bytes

UPDATE_BYTES = 26  # a parameter: planes and moments read and written (24), the bf16 gradient read
COPIES = 300  # of a direction: more than AdamW takes
COPYING = ("gradients", "activations", "embedding", "feed")  # modules that copy by `copy_async`


@contextmanager
def counted(engine: Engine) -> Iterator[dict[str, float]]:
    """Parameters updated, seconds in AdamW, and bytes copied, while it lasts."""
    seen: dict[str, float] = defaultdict(float)
    window = engine._machinery.window
    update, copy_weights = _core.adamw, window._copy_weights

    def adamw(hi: Tensor, lo: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, grad: Any, spans: Tensor, **more: Any):
        begun = time.perf_counter()
        update(hi, lo, exp_avg, exp_avg_sq, grad, spans, **more)
        seen["seconds"] += time.perf_counter() - begun
        seen["parameters"] += int((spans[:, 1] - spans[:, 0]).sum())

    def weights(layer: int, out: Tensor) -> None:
        seen["copied"] += out.nbytes
        copy_weights(layer, out)

    def copy(source: Tensor, destination: Tensor) -> None:
        seen["copied"] += source.nbytes
        copy_async(source, destination)

    with ExitStack() as stack:
        stack.enter_context(patch("slideformer.optim.adamw._core.adamw", adamw))
        stack.enter_context(patch.object(window, "_copy_weights", weights))
        for module in COPYING:
            stack.enter_context(patch(f"slideformer.memory.{module}.copy_async", copy))
        yield seen


def in_turn(engine: Engine) -> Callable[[], int]:
    """Updates all blocks that are in host memory, once; returns their parameters."""
    blocks = [state for state in engine.states.values() if type(state) is LayerState and "layers" in state.name]
    gradient = torch.zeros(blocks[0].layout.trained_numel, dtype=torch.bfloat16)
    hyper = AdamWStep(1e-9, 0.9, 0.999, 1e-8, 0.0, 1000)

    def update() -> int:
        for state in blocks:
            state.update(gradient, state.layout.fields, hyper)
        return sum(state.layout.trained_numel for state in blocks)

    return update


def measure(case: Case) -> dict[str, Any]:
    subject = Subject(case)
    enforce(case.gpu_budget_bytes)
    plan = subject.plan(case.sequences)
    allocator = HostAllocator(pin=True)
    with subject.engine(plan, lanes_for(subject.device)) as engine:
        engine.load(random_weights(engine, subject.config, 0))
        found = turns_without_steps(in_turn(engine), LinkProbe(subject.device, allocator))
        subject.step(engine, subject.batch(0), 1)
        engine.drain()
        batches = [subject.batch(number) for number in range(case.steps)]
        with counted(engine) as seen:
            begun = time.perf_counter()
            for number, batch in enumerate(batches, 2):
                subject.step(engine, batch, number)
            engine.drain()
            seconds = (time.perf_counter() - begun) / case.steps
    allocator.close()
    passed = (UPDATE_BYTES * seen["parameters"] + seen["copied"]) / case.steps
    return {
        **found,
        "step_seconds": seconds,
        "step_parameters_per_second": seen["parameters"] / seen["seconds"],
        "step_host_bytes": passed,
        "floor_seconds": passed / found["most_bytes_per_second"],
        "share_of_floor": passed / found["most_bytes_per_second"] / seconds,
        "predicted_seconds": plan.timing and plan.timing.seconds,
        "sizes": plan.as_json()["sizes"],
    }


def turns_without_steps(update: Callable[[], int], link: LinkProbe) -> dict[str, Any]:
    """Parameters a second alone and beside copies, and the most bytes a second that passed host memory."""
    update()
    rates, most = {}, 0.0
    both = {"h2d": link._h2d, "d2h": link._d2h}
    for name, ways in {"alone": [], "beside_h2d": ["h2d"], "beside_d2h": ["d2h"], "beside_both": [*both]}.items():
        events = [both[way].queue(COPIES) for way in ways]
        begun = time.perf_counter()
        parameters = update()
        seconds = time.perf_counter() - begun
        torch.cuda.synchronize()
        copied = sum(COPIES * COPY_BYTES / (before.elapsed_time(after) / 1e3) for before, after in events)
        rates[f"{name}_parameters_per_second"] = parameters / seconds
        most = max(most, UPDATE_BYTES * parameters / seconds + copied)
    return {**rates, "most_bytes_per_second": most}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen3-4b", choices=SHAPES)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--gpu-budget", default="8GiB")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--clip", action="store_true")
    parser.add_argument("--rates", help="a machine's file, or probe: measure this one first")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    case = Case(
        a.shape, a.sequences, a.length, a.steps, gpu_budget_bytes=parse_bytes(a.gpu_budget), threads=a.threads,
        clipping=a.clip, rates=rates_of(a.rates), device="cuda", matmul_flops=1.0,
    )  # fmt: skip
    result = measure(case)
    for name, value in result.items():
        print(f"{name:32s} {value / 1e9:.2f}e9" if isinstance(value, float) and value > 1e6 else f"{name:32s} {value}")
    if a.json:
        machine = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
        a.json.write_text(json.dumps({"case": case.as_json(), "machine": machine, "result": result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
