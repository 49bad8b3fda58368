"""Tokens per second of packed rows beside padded ones, over made-up distributions of record lengths.

    python benchmarks/packing.py --shape qwen3-4b --tokens 32768 --gpu-budget 8GiB --json out.json

Both train on the same records, with about the same number of real tokens a step, so that the optimizer's share is the
same. Padded micro-batches are as the planner chooses them. Counted are real tokens, never padding. Each case runs in a
process of its own. Wall time is from the first counted step to a full drain.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch
import transformers
from shapes import SHAPES

from slideformer.units import GIB, parse_bytes

# Log-normal lengths: (median, sigma of the logarithm). Made up, near what such data sets have.
DISTRIBUTIONS = {"instructions": (100, 0.7), "chats": (400, 0.9), "documents": (1500, 0.8)}
SHORTEST = 16


def record_lengths(distribution: str, count: int, longest: int) -> np.ndarray:
    median, sigma = DISTRIBUTIONS[distribution]
    drawn = np.random.default_rng(0).lognormal(math.log(median), sigma, count)
    return np.clip(drawn, SHORTEST, longest).astype(int)


def train(case: dict[str, Any]) -> dict[str, Any]:
    """A random model on random tokens of the distribution's lengths."""
    from slideformer.data.batches import BatchStream
    from slideformer.data.examples import Example
    from slideformer.data.packing import extreme_rows
    from slideformer.engine.engine import Engine
    from slideformer.engine.measure import measure_work, model_sizes
    from slideformer.engine.random_weights import random_weights
    from slideformer.kernels.liger import apply_liger, choose_kernels
    from slideformer.models.architecture import Decoder
    from slideformer.optim.adamw import AdamWStep
    from slideformer.plan.machine import Machine, resident_bytes
    from slideformer.plan.plan import Workload
    from slideformer.plan.planner import make_plan

    packed, length = case["rows"] == "packed", case["length"]
    config, device = SHAPES[case["shape"]](), torch.device(case["device"])
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    lengths = record_lengths(case["distribution"], case["records"], length)
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, config.vocab_size, (n,), generator=generator, dtype=torch.int32) for n in lengths.tolist()]
    examples = [Example(i, row, row) for i, row in enumerate(ids)]
    tokens_a_row = length if packed else float(lengths.mean())
    batch_size = max(1, round(case["tokens"] / tokens_a_row))
    stream = BatchStream(examples, batch_size, shuffle=True, seed=0, row_length=length if packed else None)

    customize = apply_liger if choose_kernels("auto", device.type) == "liger" else None
    decoder = Decoder(config, device, "sdpa", customize, packed=packed)
    rows = extreme_rows(stream.rows(0), lengths, length) if packed else [None]
    longest = length if packed else int(lengths.max())
    workload = Workload(batch_size, longest, clipping=False)
    machine = Machine.measure(device)
    budget = parse_bytes(case["gpu_budget"]) if case["gpu_budget"] else None
    work = measure_work(decoder, longest, dtype, rows)
    gpu = machine.allocatable_bytes(budget)
    plan = make_plan(model_sizes(decoder), work, workload, dtype, machine.host_bytes, gpu, resident_bytes())
    with Engine(decoder, plan.sizes, dtype) as engine:
        engine.load(random_weights(engine, config, 0))
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        trained = places = 0
        results = []
        for step in range(case["warm_up"] + case["steps"]):
            if step == case["warm_up"]:
                engine.drain()
                begin = time.perf_counter()
            batch = stream.at(step)
            results.append(engine.train_step(batch, AdamWStep(1e-5, 0.9, 0.999, 1e-8, 0.0, step + 1)))
            if step >= case["warm_up"]:
                trained += batch.tokens
                places += sum(part.input_ids.numel() for part in batch.split(plan.sizes.micro_batch_size))
        engine.drain()
        seconds = time.perf_counter() - begin
    return {
        "tokens_per_second": trained / seconds,
        "tokens_a_step": trained / case["steps"],
        "filled_share": trained / places,
        "step_seconds": seconds / case["steps"],
        "optimizer_seconds": results[-1].optimizer_seconds,
        "rows_a_step": batch_size,
        "mean_record": float(lengths.mean()),
        "gpu_allocated_gib": torch.cuda.max_memory_allocated() / GIB if device.type == "cuda" else 0.0,
        "gpu_planned_gib": plan.device_peak_bytes / GIB,
        "losses": [results[0].loss, results[-1].loss],
        "plan": plan.as_json()["sizes"],
    }


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    """One case in a fresh process; an error is part of the result."""
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=600)
    result = json.loads(done.stdout.strip().splitlines()[-1]) if done.returncode == 0 else {"error": done.returncode}
    print(_row(case, result), flush=True)
    return {**case, **result}


def _row(case: dict[str, Any], r: dict[str, Any]) -> str:
    name = f"{case['distribution']:<13} {case['rows']:<7}"
    if "error" in r:
        return f"{name} exit {r['error']}"
    return (
        f"{name} {r['tokens_per_second']:>8,.0f} tok/s  {r['filled_share']:.1%} filled, {r['rows_a_step']} rows and "
        f"{r['tokens_a_step']:,.0f} tokens a step of {r['step_seconds']:.2f} s  "
        f"GPU {r['gpu_allocated_gib']:.2f} GiB (plan {r['gpu_planned_gib']:.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen3-4b", choices=SHAPES)
    parser.add_argument("--distributions", nargs="+", default=list(DISTRIBUTIONS), choices=DISTRIBUTIONS)
    parser.add_argument("--rows", nargs="+", default=["padded", "packed"], choices=["padded", "packed"])
    parser.add_argument("--length", type=int, default=4096, help="of packed rows, and of the longest record")
    parser.add_argument("--tokens", type=int, default=32768, help="real tokens a step, about")
    parser.add_argument("--records", type=int, default=8000)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--gpu-budget")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--json")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(train(json.loads(arguments.case))))
        return
    shared = {k: v for k, v in vars(arguments).items() if k not in ("distributions", "rows", "json", "case")}
    cases = [{**shared, "distribution": d, "rows": rows} for d in arguments.distributions for rows in arguments.rows]
    results = [run_case(case) for case in cases]
    if arguments.json:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        gpu = torch.cuda.get_device_name() if arguments.device == "cuda" else "none"
        with open(arguments.json, "w") as file:
            json.dump({"command": sys.argv, "machine": {"gpu": gpu, **versions}, "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
