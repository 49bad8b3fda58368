"""What each block of a model takes, measured beside what the plan says: forward, backward, copies, AdamW.

    python benchmarks/layer_times.py --shape mistral-large-123b --blocks 4 --sequences 8 --gpu-budget 24GiB \\
        --host-budget 118GiB --rates probe --json out.json

Trains random weights on random tokens; `--blocks` takes only the first so many of the model, each at its full width.
Pieces are timed by marks in their lane's queue, so that waiting is no part of them. Shown are the medians over the
counted steps, each the sum over a step's micro-batches, or over its copies; backward has its recomputation in it, and
AdamW of a block on disk its wait for the record. Exits with 1 if a block's forward and backward together deviate by
more than `--within` from the plan, and with 2 if nothing could be measured.
"""

import argparse
import json
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from layer_pieces import judge, layers_of, render
from machine_rates import rates_of
from shapes import SHAPES

from slideformer.bench.case import Case
from slideformer.bench.sliding import Subject, enforce
from slideformer.bench.spans import break_down
from slideformer.bench.trace import Recorded, record, summary
from slideformer.errors import ConfigError, SlideFormerError
from slideformer.units import GIB, parse_bytes


def show(case: Case, within: float) -> tuple[str, bool, dict[str, Any]]:
    """(what to print, whether the plan was right, the numbers).

    Raises:
        DoesNotFit: the plan says so.
        ConfigError: there are no rates to plan with.
    """
    subject = Subject(case)
    enforce(case.gpu_budget_bytes)
    plan = subject.plan(case.sequences)
    if (timing := plan.timing) is None:
        raise ConfigError("no rates of this machine: nothing is predicted", "give --rates probe, or a machine's file")
    recorded = record(subject, plan)
    layers = layers_of(recorded.spans, case.steps, timing.schedule, plan.model.blocks)
    judgement, right = judge(layers, within)
    page = summary(case, break_down(recorded.spans, recorded.seconds), timing)
    text = "\n".join([page, *peaks(recorded), "", render(layers), "", judgement])
    return text, right, {
        "step_seconds": recorded.seconds / case.steps,
        "planned": timing.as_json(),
        **recorded.peak_bytes,
        "layers": [asdict(layer) for layer in layers],
        "sizes": plan.as_json()["sizes"],
        "within": right,
    }  # fmt: skip


def peaks(recorded: Recorded) -> list[str]:
    """A line a tier: measured and planned."""
    tiers = {"GPU": ("gpu_allocated_bytes", "gpu_planned_bytes"), "host": ("host_peak_bytes", "host_planned_bytes")}
    found = recorded.peak_bytes
    return [
        f"{tier} peak: {found[measured] / GIB:.2f} GiB (planned {found[planned] / GIB:.2f} GiB)"
        for tier, (measured, planned) in tiers.items()
        if measured in found
    ]


def case_of(a: argparse.Namespace) -> Case:
    gpu, host, disk = (parse_bytes(text) if text else None for text in (a.gpu_budget, a.host_budget, a.disk_budget))
    return Case(
        a.shape, a.sequences, a.length, a.steps, a.warm_up, gpu, host, threads=a.threads, device=a.device,
        optimizer_state=a.optimizer_state, offload_dir=a.offload_dir, disk_budget_bytes=disk, rates=rates_of(a.rates),
        blocks=a.blocks,
    )  # fmt: skip


def main(words: list[str] | None = None) -> int:
    arguments = _parser().parse_args(words)
    try:
        case = case_of(arguments)
        text, right, result = show(case, arguments.within)
    except SlideFormerError as error:
        print(error, file=sys.stderr)
        return 2
    print(text)
    if arguments.json:
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        versions = {"torch": torch.__version__, "transformers": transformers.__version__, "python": sys.version}
        machine = {"gpu": gpu, "cpu": platform.processor(), **versions}
        asked = {key: value for key, value in case.as_json().items() if key not in ("rates", "offload_dir")}
        whole = {"command": sys.argv, "machine": machine, "rates": case.rates, "case": asked, "result": result}
        arguments.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return 0 if right else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="mistral-large-123b", choices=SHAPES)
    parser.add_argument("--blocks", type=int, help="only the first so many of the model (default: all)")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=5, help="that count")
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--gpu-budget", help="such as 24GiB (default: what is free)")
    parser.add_argument("--host-budget", help="such as 118GiB (default: what is free)")
    parser.add_argument("--offload-dir", help="where states go that host memory does not hold")
    parser.add_argument("--disk-budget", help="room there (default: what is free)")
    parser.add_argument("--optimizer-state", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--rates", help="a machine's file, or probe: measure this one first (default: as probed)")
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "cpu"])
    parser.add_argument("--threads", type=int, help="of the CPU optimizer")
    parser.add_argument("--within", type=float, default=0.15, help="deviation that is allowed (default: 0.15)")
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
