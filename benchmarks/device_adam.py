"""What the optimizer's kernels reach on the GPU: AdamW over planes, and gradients on their way out, beside PyTorch's.

    python benchmarks/device_adam.py [--parameters 400M] [--rounds 25] [--json FILE]

Rates are bytes that have to move (the column B/param) over the median time of rounds, each of which times everything in
turn; ratios are medians over rounds. `copy` is what a plain copy on the device reaches. `extra` is device memory taken
besides the tensors; `host` the time until the call returned, in microseconds.

torch's fused AdamW keeps fp32 weights and reads an fp32 gradient; it would still need the bf16 weights cast.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from slideformer.kernels.gradient_flush import GradientFlush
from slideformer.optim.adamw import AdamWStep
from slideformer.optim.device_adam import DeviceAdam
from slideformer.units import parse_bytes

HYPER = AdamWStep(learning_rate=1e-4, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.01, step=1)


@dataclass(frozen=True)
class Case:
    """One thing to time.

    Args:
        bytes_per_parameter: what has to be read and written.
        against: the name of the case it is compared with, or none.
    """

    name: str
    bytes_per_parameter: int
    run: Callable[[], object]
    against: str = ""


@dataclass(frozen=True)
class Result:
    name: str
    bytes_per_parameter: int
    milliseconds: float
    gb_per_second: float
    gparams_per_second: float
    host_microseconds: float
    extra_bytes: int
    against: str
    median_ratio: float  # how many times as fast as `against`


def adamw_cases(parameters: int, device: torch.device) -> list[Case]:
    def ours(moments: torch.dtype) -> Callable[[], object]:
        hi = torch.randn(parameters, dtype=torch.bfloat16, device=device)
        lo = torch.zeros(parameters, dtype=torch.int16, device=device)
        m, v = (torch.zeros(parameters, dtype=moments, device=device) for _ in range(2))
        adam = DeviceAdam(hi, lo, m, v, [(0, parameters, True)])
        gradient = torch.randn(parameters, dtype=torch.bfloat16, device=device)
        return lambda: adam.step(gradient, HYPER)

    weight = torch.nn.Parameter(torch.randn(parameters, device=device))
    weight.grad = torch.randn(parameters, device=device)
    betas = (HYPER.beta1, HYPER.beta2)
    torchs = torch.optim.AdamW([weight], lr=HYPER.learning_rate, betas=betas, weight_decay=0.01, fused=True)
    return [
        Case("torch AdamW, fused", 28, torchs.step),
        Case("AdamW, fp32 moments", 26, ours(torch.float32), "torch AdamW, fused"),
        Case("AdamW, bf16 moments", 18, ours(torch.bfloat16), "AdamW, fp32 moments"),
    ]


def flush_cases(parameters: int, device: torch.device) -> list[Case]:
    source = torch.randn(parameters, device=device)
    outgoing, square = torch.empty(parameters, dtype=torch.bfloat16, device=device), torch.zeros((), device=device)
    flush = GradientFlush(device)

    def torch_squares() -> None:
        square.copy_(torch.linalg.vector_norm(outgoing, dtype=torch.float32).square())

    def torch_flush() -> None:
        outgoing.copy_(source)
        torch_squares()

    return [
        Case("torch copy_ + vector_norm", 6, torch_flush),
        Case("flush fp32 to bf16", 6, lambda: flush(source, outgoing, square), "torch copy_ + vector_norm"),
        Case("torch vector_norm, bf16", 2, torch_squares),
        Case("squares of bf16", 2, lambda: flush(outgoing, outgoing, square), "torch vector_norm, bf16"),
        Case("copy", 4, lambda: outgoing.copy_(source.view(torch.bfloat16)[:parameters])),
    ]


def timed(run: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Seconds on the device, and until the call returned."""
    if device.type == "cpu":
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        return seconds, seconds
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    # The device is busy for a moment, so that what is timed has been enqueued when it starts.
    torch.cuda._sleep(2_000_000)
    begin.record()
    start = time.perf_counter()
    run()
    host_seconds = time.perf_counter() - start
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3, host_seconds


def extra_bytes(run: Callable[[], object], device: torch.device) -> int:
    if device.type == "cpu":
        return 0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def measure(cases: list[Case], parameters: int, rounds: int, device: torch.device) -> list[Result]:
    for case in cases:  # compiles
        case.run()
    extra = {case.name: extra_bytes(case.run, device) for case in cases}
    rows = [{case.name: timed(case.run, device) for case in cases} for _ in range(rounds)]
    results: list[Result] = []
    for case in cases:
        seconds, host_seconds = map(statistics.median, zip(*(row[case.name] for row in rows), strict=True))
        ratios = [row[case.against][0] / row[case.name][0] for row in rows] if case.against else [1.0]
        results.append(
            Result(
                case.name,
                case.bytes_per_parameter,
                seconds * 1e3,
                parameters * case.bytes_per_parameter / seconds / 1e9,
                parameters / seconds / 1e9,
                host_seconds * 1e6,
                extra[case.name],
                case.against,
                statistics.median(ratios),
            )
        )
    return results


def show(results: list[Result]) -> None:
    print(f"{'':26} B/param       ms     GB/s  Gparam/s  host us  extra MiB  ratio")
    for r in results:
        ratio = f"  {r.median_ratio:.2f}x {r.against}" if r.against else ""
        print(
            f"{r.name:26} {r.bytes_per_parameter:7d} {r.milliseconds:8.3f} {r.gb_per_second:8.1f} "
            f"{r.gparams_per_second:9.2f} {r.host_microseconds:8.1f} {r.extra_bytes / 2**20:10.1f}{ratio}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=parse_bytes, default=parse_bytes("400M"), help="how many, such as 400M")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="also write the results there")
    args = parser.parse_args()

    device = torch.device(args.device)
    name = "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
    print(f"{args.parameters / 1e6:.0f} M parameters, {name}, torch {torch.__version__}")
    results: list[Result] = []
    for make_cases in (adamw_cases, flush_cases):  # one after the other: their tensors need not fit together
        results += measure(make_cases(args.parameters, device), args.parameters, args.rounds, device)
    show(results)
    if args.json:
        run = {"device": name, "torch": torch.__version__, "parameters": args.parameters, "rounds": args.rounds}
        args.json.write_text(json.dumps(run | {"results": [asdict(result) for result in results]}, indent=1))


if __name__ == "__main__":
    main()
