"""CPU AdamW over 16-bit planes, with fp32 and with bf16 moments, beside torch's fused fp32, interleaved in one run.

    python benchmarks/adamw.py [--parameters 64M] [--rounds 15] [--threads 1 2 16] [--json FILE]

Ours reads a bf16 gradient (26 bytes of memory traffic a parameter, 18 with bf16 moments), torch an fp32 one (28). A GPU
would still need torch's weights cast to bf16 afterwards; ours are there already, as the high plane. Ratios are medians
over rounds, each of which times all three, in turn.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from slideformer import _core
from slideformer.optim.adamw import AdamWStep, LayerAdam
from slideformer.optim.planes import split
from slideformer.optim.threads import cpu_threads
from slideformer.units import parse_bytes

OUR_BYTES, BF16_BYTES, TORCH_BYTES = 26, 18, 28  # memory traffic per parameter
HYPER = AdamWStep(learning_rate=1e-4, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.01, step=1)


def our_step(parameters: int, threads: int, moments: torch.dtype) -> Callable[[], None]:
    hi, lo = torch.empty(parameters, dtype=torch.bfloat16), torch.empty(parameters, dtype=torch.int16)
    split(torch.randn(parameters), hi, lo, threads)
    m, v = (torch.zeros(parameters, dtype=moments) for _ in range(2))
    adam = LayerAdam(hi, lo, m, v, [(0, parameters, True)], threads)
    grad = torch.randn(parameters).bfloat16()
    return lambda: adam.step(grad, HYPER)


def torch_step(parameters: int) -> Callable[[], None]:
    parameter = torch.nn.Parameter(torch.randn(parameters))
    parameter.grad = torch.randn(parameters)
    optimizer = torch.optim.AdamW(
        [parameter],
        lr=HYPER.learning_rate,
        betas=(HYPER.beta1, HYPER.beta2),
        eps=HYPER.epsilon,
        weight_decay=HYPER.weight_decay,
        fused=True,
    )
    return optimizer.step


def seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def compare(parameters: int, threads: int, rounds: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    ours, bf16 = (our_step(parameters, threads, moments) for moments in (torch.float32, torch.bfloat16))
    theirs = torch_step(parameters)
    for warm_up in (ours, bf16, theirs):  # first touch, thread pools
        warm_up()
    rows = [(seconds(ours), seconds(bf16), seconds(theirs)) for _ in range(rounds)]
    our_rate, bf16_rate, torch_rate = (parameters / statistics.median(column) for column in zip(*rows, strict=True))
    return {
        "threads": threads,
        "our_gparams_per_second": our_rate / 1e9,
        "our_gb_per_second": our_rate * OUR_BYTES / 1e9,
        "bf16_gparams_per_second": bf16_rate / 1e9,
        "bf16_gb_per_second": bf16_rate * BF16_BYTES / 1e9,
        "torch_gparams_per_second": torch_rate / 1e9,
        "torch_gb_per_second": torch_rate * TORCH_BYTES / 1e9,
        "median_ratio": statistics.median(theirs / ours for ours, _, theirs in rows),
        "bf16_median_ratio": statistics.median(ours / bf16 for ours, bf16, _ in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=parse_bytes, default=parse_bytes("64M"), help="how many, such as 64M")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, 2, cpu_threads()}))
    parser.add_argument("--json", type=Path, help="also write the results there")
    args = parser.parse_args()

    print(f"{args.parameters / 1e6:.0f} M parameters, {_core.selected_isa()}, torch {torch.__version__}")
    print("threads   ours Gparam/s  GB/s   bf16 moments  GB/s   torch Gparam/s  GB/s   ours/torch   bf16/ours")
    results = []
    for threads in args.threads:
        result = compare(args.parameters, threads, args.rounds)
        results.append(result)
        print("{:7d} {:14.3f} {:6.1f} {:13.3f} {:6.1f} {:15.3f} {:6.1f} {:11.2f}x {:10.2f}x".format(*result.values()))
    if args.json:
        run = {"isa": _core.selected_isa(), "torch": torch.__version__, "machine": platform.machine()}
        args.json.write_text(json.dumps(run | {"parameters": args.parameters, "results": results}, indent=1))


if __name__ == "__main__":
    main()
