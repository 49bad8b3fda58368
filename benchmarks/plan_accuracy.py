"""How near the plan is to what is measured: GPU and host peaks, and seconds of a step, over a grid of configurations.

    python benchmarks/plan_accuracy.py --rates probe --offload-dir DISK --json first.json --stop-after 500
    python benchmarks/plan_accuracy.py --rates probe --offload-dir DISK --json then.json --only 14-26 --read first.json
    python benchmarks/plan_accuracy.py --read benchmarks/results/*-h200-compare-*.json --only    # measures nothing

Each configuration of the grid in this file (for one GPU of 139 GiB with 128 GiB of host memory) is measured in a
process of its own; an error or a timeout is a result. Results of `compare.py` (the sliding engine's), `gpu_alone.py`
and earlier calls join the table with `--read`, in the order of the files, measurements of this call last. A
configuration that was measured more than once counts once: the last.

A configuration is within the plan if measured / planned - 1 is from -3% to +3% for the peak of memory allocated on the
GPU and for the peak of the process's resident memory, and measured / predicted - 1 from -15% to +15% for the seconds
of a step. So a peak that is more than 3% below the plan misses, too, and so does what has no prediction.

The exit code is 1 if there are fewer than 20 configurations, or any of them is not within, or failed; otherwise 0.
"""

import argparse
import json
import platform
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import torch
import transformers
from accuracy_rows import ENOUGH, Result, Row, asked, latest, name_of, read_rows, row_of
from accuracy_table import line_of, render, summarize
from machine_rates import rates_of

from slideformer.bench.case import Case
from slideformer.bench.command import run_case
from slideformer.plan.sizes import OptimizerState
from slideformer.units import parse_bytes


@dataclass(frozen=True)
class Configuration:
    """What is trained within what: `sequences` of `length` tokens a step; budgets of None are what is free."""

    shape: str
    sequences: int
    length: int
    gpu: str | None = None
    host: str | None = None
    disk: bool = False
    optimizer_state: OptimizerState = "fp32"

    def case(self, steps: int, warm_up: int, offload_dir: str | None, rates: Result | None) -> Case:
        gpu, host = (parse_bytes(text) if text else None for text in (self.gpu, self.host))
        return Case(
            self.shape, self.sequences, self.length, steps, warm_up, gpu, host, optimizer_state=self.optimizer_state,
            offload_dir=offload_dir if self.disk else None, rates=rates,
        )  # fmt: skip

    @property
    def asked(self) -> Case:
        """As a row has it."""
        return asked(self.case(1, 0, None, None).as_json(), self.disk)


GRID = (  # the quickest first
    Configuration("qwen3-0.6b", 4, 512, "8GiB"),
    Configuration("qwen3-0.6b", 16, 512, "8GiB"),
    Configuration("qwen3-0.6b", 8, 1024, "24GiB"),
    Configuration("qwen3-0.6b", 64, 512),
    Configuration("qwen3-0.6b", 32, 1024, "48GiB"),
    Configuration("qwen3-0.6b", 8, 4096, "24GiB"),
    Configuration("qwen3-0.6b", 128, 512, "24GiB"),
    Configuration("qwen3-0.6b", 16, 4096),
    Configuration("qwen3-0.6b", 2, 16384, "48GiB"),
    Configuration("qwen3-0.6b", 16, 2048, "8GiB", host="5GiB", disk=True),
    Configuration("qwen3-0.6b", 4, 8192, "8GiB", host="5GiB", disk=True),
    Configuration("qwen3-0.6b", 1, 32768, "8GiB"),
    Configuration("qwen3-0.6b", 2, 32768, "48GiB"),
    Configuration("qwen3-4b", 16, 512, "24GiB"),
    Configuration("qwen3-4b", 8, 1024, "48GiB"),
    Configuration("qwen3-4b", 8, 1024, "8GiB"),
    Configuration("qwen3-4b", 32, 512, "48GiB"),
    Configuration("qwen3-4b", 64, 512),
    Configuration("qwen3-4b", 4, 8192, "24GiB"),
    Configuration("qwen3-4b", 1, 32768, "24GiB"),
    Configuration("qwen3-4b", 8, 1024, "24GiB", host="30GiB", disk=True),
    Configuration("llama-3.1-8b", 16, 512, "8GiB"),
    Configuration("llama-3.1-8b", 8, 2048, "48GiB"),
    Configuration("qwen3-14b", 8, 2048, host="105GiB"),
    Configuration("qwen3-14b", 16, 1024, "48GiB", optimizer_state="bf16"),
    Configuration("llama-3.1-8b", 16, 1024, "24GiB", host="84GiB", disk=True),
)


class Measurements:
    """Measures configurations one after another.

    Attributes:
        results: one a configuration, in order; written to `--json` after each.
    """

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        self.results: list[Result] = []
        self._began = time.perf_counter()
        self._rates: Result | None = None
        self._matmul_flops: float | None = None

    def run(self, configurations: Sequence[Configuration]) -> None:
        """What time does not suffice for is no result: it was not measured."""
        a = self.arguments
        self._rates = rates_of(a.rates, a.offload_dir or ".") if configurations else None
        for configuration in configurations:
            result = self._measure(configuration) if self._left() > 0 else None
            if result is None:
                print(f"{name_of(configuration.asked)}: not measured, {a.stop_after:.0f} s were over", flush=True)
                continue
            self.results.append(result)
            print(line_of(row_of(result, configuration.disk)), flush=True)
            if a.json:
                self._write(a.json)

    def _measure(self, configuration: Configuration) -> Result | None:
        a = self.arguments
        case = configuration.case(a.steps, a.warm_up, a.offload_dir, self._rates)
        result = run_case(replace(case, matmul_flops=self._matmul_flops), min(a.timeout, self._left()))
        if "error" in result and self._left() <= 0:
            return None
        self._matmul_flops = self._matmul_flops or result.get("matmul_flops")
        return {"disk": configuration.disk, **{k: v for k, v in result.items() if k not in ("rates", "offload_dir")}}

    def _left(self) -> float:
        """Seconds until no configuration begins."""
        return self.arguments.stop_after - (time.perf_counter() - self._began)

    def _write(self, file: Path) -> None:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__, "python": sys.version}
        machine = {"name": self._rates and self._rates["name"], "cpu": platform.processor(), **versions}
        whole = {"command": sys.argv, "machine": machine, "rates": self._rates, "results": self.results}
        file.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def chosen(words: Sequence[str] | None) -> list[Configuration]:
    """Those of the grid that the words name: numbers from 1, ranges such as 3-7, names, or patterns of names.

    Raises:
        ValueError: a word names none.
    """
    if words is None:
        return list(GRID)
    numbers = set().union(*map(_numbers_of, words))
    return [configuration for number, configuration in enumerate(GRID, 1) if number in numbers]


def _numbers_of(word: str) -> set[int]:
    if match := re.fullmatch(r"(\d+)(?:-(\d+))?", word):
        named = set(range(int(match[1]), int(match[2] or match[1]) + 1))
    else:
        named = {n for n, configuration in enumerate(GRID, 1) if fnmatchcase(name_of(configuration.asked), word)}
    if not named or not named <= set(range(1, len(GRID) + 1)):
        raise ValueError(f"{word!r} names no configuration of the grid, which are 1 to {len(GRID)}; see --list")
    return named


def main(words: Sequence[str] | None = None) -> int:
    parser = _parser()
    a = parser.parse_args(words)
    try:
        configurations, rows = chosen(a.only), [row for file in a.read for row in read_rows(file)]
    except ValueError as error:
        parser.error(str(error))
    if a.list:
        print("\n".join(f"{number:3} {name_of(configuration.asked)}" for number, configuration in enumerate(GRID, 1)))
        return 0
    if not a.offload_dir and (on_disk := [name_of(c.asked) for c in configurations if c.disk]):
        parser.error(f"--offload-dir is needed for {', '.join(on_disk)}")
    measurements = Measurements(a)
    measurements.run(configurations)
    return conclude([*rows, *(row_of(result, result["disk"]) for result in measurements.results)])


def conclude(rows: Sequence[Row]) -> int:
    """Print the table and what follows from it; the exit code."""
    counted, replaced = latest(rows)
    cases = {row.case for row in counted}
    not_measured = [c.asked for c in GRID if c.asked not in cases]
    print(f"\n{render(counted)}\n\n{summarize(counted, replaced, not_measured)}")
    return 0 if len(counted) >= ENOUGH and all(row.holds for row in counted) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", help="a machine's file, or probe: measure this one first, and its --offload-dir")
    parser.add_argument("--offload-dir", help="where states go that host memory does not hold, if the grid says so")
    parser.add_argument(
        "--only", nargs="*", metavar="NAME", help="names, patterns of names, numbers or ranges; or none"
    )
    parser.add_argument("--list", action="store_true", help="print the grid's numbers and names, and measure nothing")
    parser.add_argument(
        "--read", nargs="+", type=Path, default=[], metavar="FILE", help="results that are there already"
    )
    parser.add_argument("--steps", type=int, default=6, help="that count")
    parser.add_argument("--warm-up", type=int, default=3, help="the first ones compile and fill caches")
    parser.add_argument("--timeout", type=float, default=240, help="seconds of a configuration")
    parser.add_argument("--stop-after", type=float, default=float("inf"), help="seconds; none begins or goes on later")
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
