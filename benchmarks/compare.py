"""A training step of the sliding engine beside other ways to train the same model, in one run on one machine.

    python benchmarks/compare.py --sequences 8 32 64 --gpu-budget none 24GiB 8GiB --rates probe --json out.json
    python benchmarks/compare.py --systems sliding resident deepspeed-zero3 --gpu-budget deepspeed-zero3
    python benchmarks/compare.py --largest-batch --systems sliding deepspeed-zero3 --gpu-budget 24GiB
    python benchmarks/compare.py --systems sliding --shape qwen3-14b --sequences 8 --gpu-budget 24GiB --offload-dir DISK

Each case runs in a process of its own; an error or a timeout is a result. A budget is the sliding engine's, and
enforced; the name of another system as budget is what that system reserved with as many sequences. Without
`--largest-batch` the other systems may use the whole GPU. Tokens per second are those of the counted steps, up to the
last update; no token is padding. MFU counts the model's operations (causal attention, nothing recomputed) over the
matmul rate measured in this run. With rates (`--rates`, or an earlier probe) the sliding engine's plan is chosen by
predicted seconds, which stand beside those that were measured.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from comparison_table import render
from largest_batch import find_largest
from machine_rates import rates_of
from shapes import SHAPES
from systems import BUILDERS, SLIDING, measure_system, micro_batch_counts

from slideformer.bench.arguments import count_or_auto
from slideformer.bench.case import Case
from slideformer.bench.fresh_process import run_fresh
from slideformer.bench.model_config import config_of
from slideformer.bench.model_flops import step_flops
from slideformer.engine.operations import count_operations
from slideformer.models.architecture import Decoder
from slideformer.plan.operations import full_step
from slideformer.units import parse_bytes

OUT_OF_MEMORY = ("OutOfMemoryError", "out of memory")
COMPILE_SECONDS = 300

Result = dict[str, Any]


class Comparison:
    """Runs cases one after another and keeps what came of them.

    Attributes:
        results: one a case, in order; written to `json_file` after each.
    """

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        self.results: list[Result] = []
        self._plain = plain_case(arguments)
        self._began = time.perf_counter()
        self._matmul_flops: float | None = None
        decoder = Decoder(config_of(self._plain), torch.device("cpu"), "sdpa")
        self._operations = count_operations(decoder, torch.bfloat16, fused=True)

    def run(self) -> None:
        if any(system.startswith("deepspeed") for system in self.arguments.systems):
            compiled = run_fresh([sys.executable, __file__, "--compile"], COMPILE_SECONDS)
            print(f"DeepSpeed's AdamW: {compiled.get('error', 'compiled')}", file=sys.stderr, flush=True)
        for system, case in self._cases():
            self._add(system, case, self._measure(system, case))

    def _cases(self) -> Iterator[tuple[str, Case]]:
        a = self.arguments
        for sequences in a.sequences or [0]:
            plain = replace(self._plain, sequences=sequences)
            for system in [*(s for s in a.systems if s != SLIDING), *([SLIDING] if SLIDING in a.systems else [])]:
                limited = system == SLIDING or a.largest_batch
                for budget in a.gpu_budget if limited else ["none"]:
                    limit = self._budget_bytes(budget, sequences)
                    yield system, replace(plain, gpu_budget_bytes=limit, matmul_flops=self._matmul_flops)

    def _budget_bytes(self, budget: str, sequences: int) -> int | None:
        if budget == "none":
            return None
        if budget not in BUILDERS:
            return parse_bytes(budget)
        same = [r for r in self.results if r["system"] == budget and r["sequences"] == sequences]
        return same[-1].get("gpu_reserved_bytes") if same else None

    def _measure(self, system: str, case: Case) -> Result:
        a = self.arguments
        left = a.stop_after - (time.perf_counter() - self._began)
        if left < 0:
            return {"error": f"not started: {a.stop_after:.0f} s were over"}
        if a.largest_batch:
            return find_largest(system, case, a.largest_start, a.largest_growth, min(a.timeout, left))
        counts = [1] if system == SLIDING else micro_batch_counts(system, case.sequences)
        result: Result = {}
        for count in counts:
            asked = json.dumps({"system": system, "case": case.as_json(), "micro_batches": count})
            result = run_fresh([sys.executable, __file__, "--case", asked], min(a.timeout, left))
            if not any(words in result.get("error", "") for words in OUT_OF_MEMORY):
                break
        return result

    def _add(self, system: str, case: Case, result: Result) -> None:
        self._matmul_flops = self._matmul_flops or result.get("matmul_flops")
        if "step_seconds" in result and self._operations and self._matmul_flops:
            flops = step_flops(self._operations, full_step(case.sequences, case.length))
            result["mfu"] = flops / result["step_seconds"] / self._matmul_flops
        asked = {key: value for key, value in case.as_json().items() if key not in ("rates", "offload_dir")}
        self.results.append({"system": system, **asked, **result})
        print(render(self.results[-1:], self.results, heading=False), flush=True)
        if self.arguments.json:
            self._write(self.arguments.json)

    def _write(self, file: Path) -> None:
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        versions = {"torch": torch.__version__, "transformers": transformers.__version__, "python": sys.version}
        machine = {"gpu": gpu, "cpu": platform.processor(), "matmul_flops": self._matmul_flops, **versions}
        whole = {"command": sys.argv, "machine": machine, "rates": self._plain.rates, "results": self.results}
        file.write_text(json.dumps(whole, indent=1) + "\n")


def plain_case(a: argparse.Namespace) -> Case:
    """What all cases share."""
    return Case(
        a.shape, 0, a.length, a.steps, a.warm_up, clipping=a.clip, optimizer_state=a.optimizer_state,
        host_budget_bytes=parse_bytes(a.host_budget) if a.host_budget else None, offload_dir=a.offload_dir,
        micro_batch_size=a.micro_batch_size, window_depth=a.window_depth, resident=a.resident, kept=a.kept,
        host_outputs=a.host_outputs,
        threads=a.threads, rates=rates_of(a.rates), blocks=a.blocks,
    )  # fmt: skip


def main() -> None:
    arguments = _parser().parse_args()
    if arguments.compile:
        from offload_deepspeed import compile_optimizer

        compile_optimizer()
        print("{}")
    elif arguments.case:
        asked = json.loads(arguments.case)
        print(json.dumps(measure_system(asked["system"], Case(**asked["case"]), asked["micro_batches"])))
    else:
        comparison = Comparison(arguments)
        comparison.run()
        print(f"\n{render(comparison.results, comparison.results)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen3-4b", choices=SHAPES)
    parser.add_argument("--blocks", type=int, help="only the first so many of the model (default: all)")
    parser.add_argument("--sequences", type=int, nargs="+", default=[8, 32, 64])
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--systems", nargs="+", default=[*BUILDERS, SLIDING], choices=[*BUILDERS, SLIDING])
    parser.add_argument("--gpu-budget", nargs="+", default=["none"], help="sizes, none, or a system's name")
    sliding = parser.add_argument_group("the sliding engine; left out: chosen, or none")
    sliding.add_argument("--clip", action="store_true", help="clip gradients")
    sliding.add_argument("--rates", help="a machine's file, or probe: measure this one first; choose plans by seconds")
    sliding.add_argument("--host-budget", help="such as 118GiB")
    sliding.add_argument("--offload-dir", help="where states go that host memory does not hold")
    sliding.add_argument("--optimizer-state", default="fp32", choices=["fp32", "bf16"])
    sliding.add_argument("--micro-batch-size", type=int)
    sliding.add_argument("--window-depth", type=int)
    sliding.add_argument("--resident", type=int, help="blocks whose state stays on the GPU")
    sliding.add_argument("--kept", type=int, help="blocks of which nothing is recomputed")
    sliding.add_argument("--host-outputs", type=count_or_auto, help="forwards whose outputs wait in host memory")
    sliding.add_argument("--threads", type=int, help="of the CPU optimizer")
    parser.add_argument("--steps", type=int, default=4, help="that count")
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=200, help="seconds of a case")
    parser.add_argument("--stop-after", type=float, default=float("inf"), help="seconds; no case begins later")
    parser.add_argument("--largest-batch", action="store_true", help="how many sequences a budget holds")
    parser.add_argument("--largest-start", type=int, default=16, help="sequences that baselines are tried with first")
    parser.add_argument("--largest-growth", type=int, default=8, help="sequences more until it fails")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--compile", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
