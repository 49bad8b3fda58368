"""Tokens per second of a training step: the sliding engine beside resident training of the same shape, in one run.

    python benchmarks/step.py --shape qwen3-4b --sequences 8 32 --gpu-budget 8GiB --rates probe --json out.json

Each case runs in a process of its own, so that peaks are its own. Wall time is from the first counted step to a full
drain. With `--rates` plans are chosen by predicted seconds, and the prediction is printed beside what was measured.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from shapes import SHAPES

from slideformer.listeners.metrics import host_peak_bytes
from slideformer.units import GIB, parse_bytes


def sliding(case: dict[str, Any]) -> dict[str, Any]:
    """Train a random model through the engine, as `slideformer bench` does."""
    from slideformer.bench.case import Case
    from slideformer.bench.sliding import measure

    same = ("sequences", "length", "steps", "warm_up", "micro_batch_size", "window_depth", "threads", "optimizer_state",
            "resident", "kept", "offload_dir", "rates")  # fmt: skip
    gpu, host = (parse_bytes(case[name]) if case[name] else None for name in ("gpu_budget", "host_budget"))
    result = measure(
        Case(
            case["shape"], **{name: case[name] for name in same}, clipping=case["clip"], gpu_budget_bytes=gpu,
            host_budget_bytes=host, device="cuda",
        )
    )  # fmt: skip
    sizes = {f"{name.removesuffix('_bytes')}_gib": v / GIB for name, v in result.items() if name.endswith("_bytes")}
    speed = result["parameters"] / 1e9 / result["optimizer_seconds"]
    return {**result, **sizes, "gparam_per_second": speed, "predicted": result["planned"]}


def resident(case: dict[str, Any]) -> dict[str, Any]:
    """Train the same shape with everything on the GPU."""
    import resident as baseline

    torch.manual_seed(0)
    config = SHAPES[case["shape"]]()
    step = baseline.build(config, torch.device("cuda"), recompute=case["recompute"])
    torch.cuda.reset_peak_memory_stats()
    micro = max(1, case["sequences"] // (case["micro_batch_size"] or 8))
    losses = []
    for k in range(case["warm_up"] + case["steps"]):
        if k == case["warm_up"]:
            torch.cuda.synchronize()
            begin = time.perf_counter()
        ids = torch.randint(0, config.vocab_size, (case["sequences"], case["length"])).cuda()
        losses.append(step(ids, micro))
    torch.cuda.synchronize()
    elapsed = time.perf_counter() - begin
    return {
        "tokens_per_second": case["steps"] * case["sequences"] * case["length"] / elapsed,
        "step_seconds": elapsed / case["steps"],
        "gpu_allocated_gib": torch.cuda.max_memory_allocated() / GIB,
        "gpu_reserved_gib": torch.cuda.max_memory_reserved() / GIB,
        "host_peak_gib": host_peak_bytes() / GIB,
        "losses": [float(losses[0]), float(losses[-1])],
    }


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    """One case in a fresh process; an error is part of the result."""
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=case["timeout"])
    lines = done.stdout.strip().splitlines()
    result = json.loads(lines[-1]) if done.returncode == 0 else {"error": f"exit {done.returncode}"}
    print(_row(case, result), flush=True)
    return {**case, **result}


def _row(case: dict[str, Any], r: dict[str, Any]) -> str:
    limit, clipped = case["gpu_budget"] or "-", ", clipped" if case["clip"] else ""
    name = f"{case['system']:<9} {case['sequences']:>3} x {case['length']} budget {limit}{clipped}"
    if "error" in r:
        return f"{name}  {r['error']}"
    text = f"{name}  {r['tokens_per_second']:>8,.0f} tok/s  GPU {r['gpu_allocated_gib']:.2f} GiB"
    if "gpu_planned_gib" in r:
        text += (
            f" (plan {r['gpu_planned_gib']:.2f})  host {r['host_peak_gib']:.1f} GiB (plan {r['host_planned_gib']:.1f})"
        )
        text += (
            f"  AdamW {r['gparam_per_second']:.2f} Gparam/s, {r['optimizer_seconds']:.2f} of {r['step_seconds']:.2f} s"
        )
    if r.get("predicted"):
        text += f"  predicted {r['predicted']['tokens_per_second']:,.0f} tok/s"
    return text


def rates_of(argument: str | None) -> dict[str, Any] | None:
    """Of a file, or of this machine, in a process of its own: what is measured there stays out of the cases."""
    if argument != "probe":
        return None if argument is None else json.loads(Path(argument).read_text(encoding="utf-8"))
    command = [sys.executable, "-m", "slideformer", "probe", "--fresh", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    return json.loads(done.stdout[done.stdout.index("{") :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="qwen3-4b", choices=SHAPES)
    parser.add_argument("--sequences", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--gpu-budget", nargs="+", default=["none"], help="of the sliding system: sizes, or none")
    parser.add_argument("--micro-batch-size", type=int)
    parser.add_argument("--window-depth", type=int)
    parser.add_argument("--resident", type=int, help="blocks whose state stays on the GPU; left out: chosen")
    parser.add_argument("--kept", type=int, help="blocks of which nothing is recomputed; left out: chosen")
    parser.add_argument("--rates", help="a machine's file, or probe: measure this one first; choose plans by seconds")
    parser.add_argument("--host-budget")
    parser.add_argument("--offload-dir")
    parser.add_argument("--optimizer-state", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--threads", type=int, help="of the CPU optimizer")
    parser.add_argument("--clip", action="store_true")
    parser.add_argument("--systems", nargs="+", default=["sliding", "resident"])
    parser.add_argument("--json")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        case = json.loads(arguments.case)
        print(json.dumps({"sliding": sliding, "resident": resident}[case["system"]](case)))
        return
    arguments.rates = rates_of(arguments.rates)
    shared = {
        k: v for k, v in vars(arguments).items() if k not in ("sequences", "systems", "gpu_budget", "json", "case")
    }
    cases = [
        {**shared, "system": system, "gpu_budget": budget, "sequences": count, "recompute": True, "timeout": 300}
        for count in arguments.sequences
        for system in arguments.systems
        for budget in ([None if b == "none" else b for b in arguments.gpu_budget] if system == "sliding" else [None])
    ]
    results = [run_case(case) for case in cases]
    if arguments.json:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        machine = {"gpu": torch.cuda.get_device_name(), "cpu": platform.processor(), **versions}
        with open(arguments.json, "w") as file:
            json.dump({"command": sys.argv, "machine": machine, "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
