"""What evaluation and generation cost: held-out tokens per second beside plain PyTorch, seconds per generated token.

    python benchmarks/forward.py --shape qwen3-4b --sequences 8 --batches 4 --gpu-budget 8GiB --json out.json

Evaluation is by the engine that trains, after a step of training; plain PyTorch has the whole model on the device.
Generation is by the engine that holds weights only. Weights are random: prompts are never answered to an end.
"""

import argparse
import json
import sys
import time
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from shapes import SHAPES

from slideformer.data.batches import Batch, collate
from slideformer.data.examples import Example
from slideformer.engine.device import device_and_dtype
from slideformer.engine.engine import Engine
from slideformer.engine.inference import InferenceEngine
from slideformer.engine.measure import measure_work, model_sizes
from slideformer.engine.measure_inference import measure_inference
from slideformer.engine.random_weights import random_weights
from slideformer.engine.sampling import Decoding
from slideformer.models.architecture import Decoder
from slideformer.optim.adamw import AdamWStep
from slideformer.plan.inference import plan_inference
from slideformer.plan.machine import Machine, resident_bytes
from slideformer.plan.plan import Workload
from slideformer.plan.planner import make_plan
from slideformer.units import parse_bytes


def batch_of(config: Any, sequences: int, length: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, config.vocab_size, (sequences, length), generator=generator, dtype=torch.int32)
    return collate([Example(k, row, row) for k, row in enumerate(ids)], 0)


def evaluation(a: argparse.Namespace, decoder: Decoder, dtype: torch.dtype) -> dict[str, Any]:
    """Held-out tokens per second, and of the training step before."""
    machine = Machine.measure(decoder.device)
    work = measure_work(decoder, a.length, dtype)
    workload = Workload(a.sequences, a.length, clipping=False)
    gpu = machine.allocatable_bytes(a.gpu_budget)
    plan = make_plan(model_sizes(decoder), work, workload, dtype, machine.host_bytes, gpu, resident_bytes())
    batches = [batch_of(decoder.config, a.sequences, a.length, seed) for seed in range(a.batches)]
    with Engine(decoder, plan.sizes, dtype) as engine:
        engine.load(random_weights(engine, decoder.config, 0))
        seconds = []
        for step in (1, 2):
            started = time.perf_counter()
            engine.train_step(batches[0], AdamWStep(1e-5, 0.9, 0.999, 1e-8, 0.0, step))
            engine.drain()
            seconds.append(time.perf_counter() - started)
        engine.evaluate(batches[:1])  # warm-up
        started = time.perf_counter()
        found = engine.evaluate(batches)
        elapsed = time.perf_counter() - started
    tokens = sum(batch.tokens for batch in batches)
    return {
        "evaluated_tokens_per_second": tokens / elapsed,
        "share_of_a_training_step": elapsed / len(batches) / seconds[-1],
        "loss": found.loss,
        "window_depth": plan.sizes.window_depth,
    }


def plain_evaluation(a: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The same by the model itself, all of it on the device."""
    from transformers import AutoModelForCausalLM

    config = SHAPES[a.shape]()
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).to(device).eval()
    batches = [batch_of(config, a.sequences, a.length, seed) for seed in range(a.batches)]

    def pass_over(chosen: list[Batch]) -> float:
        started, total = time.perf_counter(), 0.0
        with torch.no_grad():
            for batch in chosen:
                for part in batch.split(a.plain_micro):
                    logits = model(input_ids=part.input_ids.to(device), use_cache=False).logits.flatten(0, 1)
                    total += float(F.cross_entropy(logits.float(), part.targets.flatten().to(device)))
        return time.perf_counter() - started

    pass_over(batches[:1])
    return {"plain_tokens_per_second": sum(batch.tokens for batch in batches) / pass_over(batches)}


def generation(a: argparse.Namespace, decoder: Decoder, dtype: torch.dtype, prompts: int) -> dict[str, Any]:
    """Seconds per token of so many prompts."""
    machine, length = Machine.measure(decoder.device), 64
    plan = plan_inference(
        model_sizes(decoder), measure_inference(decoder, length, dtype), prompts, length, length + a.new_tokens, dtype,
        machine.host_bytes, machine.allocatable_bytes(a.gpu_budget), resident_bytes(),
    )  # fmt: skip
    with InferenceEngine(decoder, plan.sizes, dtype) as engine:
        engine.load(random_weights(engine, decoder.config, 0))
        asked = [[k + 5] * length for k in range(prompts)]
        engine.generate(asked, Decoding(2))
        times = [time.perf_counter()]

        def on_token(number: int, _: int) -> None:
            if number == 0:
                times.append(time.perf_counter())

        engine.generate(asked, Decoding(a.new_tokens), on_token)
    steps = sorted(later - earlier for earlier, later in pairwise(times[1:]))
    return {
        "prompts": prompts,
        "seconds_per_token": steps[len(steps) // 2],
        "tokens_per_second": prompts / steps[len(steps) // 2],
        "seconds_to_first_token": times[1] - times[0],
        "window_depth": plan.sizes.window_depth,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen3-4b", choices=SHAPES)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--gpu-budget", type=parse_bytes, help="of the sliding engines, such as 8GiB")
    parser.add_argument("--plain-micro", type=int, default=4, help="sequences at a time of plain PyTorch")
    parser.add_argument("--json")
    a = parser.parse_args()
    device, dtype = device_and_dtype("auto", "auto")
    decoder = Decoder(SHAPES[a.shape](), device)
    results = [evaluation(a, decoder, dtype), plain_evaluation(a, device, dtype)]
    results += [generation(a, decoder, dtype, prompts) for prompts in a.prompts]
    for result in results:
        print(json.dumps(result), flush=True)
    if a.json:
        with open(a.json, "w") as file:
            json.dump({"command": sys.argv, "torch": torch.__version__, "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
