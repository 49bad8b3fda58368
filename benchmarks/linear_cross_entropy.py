"""Head and loss, forward and backward: ours, whole and in shards, beside PyTorch and Liger's fused kernel.

    python benchmarks/linear_cross_entropy.py [--tokens 2048 8192] [--hidden 2560] [--vocabulary 151936] [--json FILE]

Everything gives the mean loss and the gradients of hidden states and weight, from bf16. `peak` is device memory taken
beside hidden states, weight and targets, gradients included. Errors are the largest difference from gradients in fp64
over the largest gradient. Ours has fp32 gradients; the others' are bf16. In shards the weight lies on the device here:
the engine would stream it, so this times computation alone.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from slideformer.kernels.cross_entropy import cross_entropy
from slideformer.kernels.cross_entropy_shards import SoftmaxStatistics, add_shard, shard_gradient
from slideformer.memory.head_shards import shard_rows
from slideformer.models.head_matmul import add_product

Gradients = tuple[Tensor, Tensor]  # of hidden states [tokens, hidden] and weight [vocabulary, hidden]
Way = Callable[[Tensor, Tensor, Tensor], Gradients]


@dataclass(frozen=True)
class Result:
    name: str
    tokens: int
    milliseconds: float
    peak_bytes: int
    hidden_error: float
    weight_error: float


def whole(chunk: int) -> Way:
    """As engine/compute.py."""

    def run(hidden: Tensor, weight: Tensor, targets: Tensor) -> Gradients:
        d_hidden, d_weight = torch.empty_like(hidden), torch.zeros_like(weight, dtype=torch.float32)
        for h, t, d_h in zip(hidden.split(chunk), targets.split(chunk), d_hidden.split(chunk), strict=True):
            _, d_logits = cross_entropy(h @ weight.mT, t, 1 / len(targets))
            add_product(d_weight, d_logits.mT, h)
            torch.mm(d_logits, weight, out=d_h)
            del d_logits
        return d_hidden, d_weight

    return run


def in_shards(shards: int, chunk: int, keep: bool) -> Way:
    """As engine/head_shards.py.

    Args:
        keep: collect the shards' gradients, which the engine sends away, to compare them.
    """

    def run(hidden: Tensor, weight: Tensor, targets: Tensor) -> Gradients:
        statistics_of = SoftmaxStatistics.of(len(targets), hidden.device)
        d_hidden = torch.zeros_like(hidden, dtype=torch.float32)
        parts = list(weight.split(shard_rows(len(weight), shards)))
        bounds = [(start, min(start + chunk, len(targets))) for start in range(0, len(targets), chunk)]
        for k, part in enumerate(parts):
            for a, b in bounds:
                add_shard(hidden[a:b] @ part.mT, targets[a:b], k * len(parts[0]), statistics_of.part(a, b))
        log_sum, kept = statistics_of.log_sum(), []
        for k, part in enumerate(parts):
            d_part = torch.zeros_like(part, dtype=torch.float32)
            for a, b in bounds:
                logits, first = hidden[a:b] @ part.mT, k * len(parts[0])
                d_logits = shard_gradient(logits, targets[a:b], first, log_sum[a:b], 1 / len(targets))
                add_product(d_part, d_logits.mT, hidden[a:b])
                add_product(d_hidden[a:b], d_logits, part)
                del logits, d_logits
            kept += [d_part] if keep else []
            del d_part
        return d_hidden.to(hidden.dtype), torch.cat(kept) if keep else weight[:0]

    return run


def by_autograd(loss_of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Way:
    def run(hidden: Tensor, weight: Tensor, targets: Tensor) -> Gradients:
        h, w = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
        d_hidden, d_weight = torch.autograd.grad(loss_of(h, w, targets), [h, w])
        return d_hidden, d_weight

    return run


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy((hidden @ weight.mT).float(), targets)


def in_fp64(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int = 512) -> Gradients:
    w = weight.double()
    d_hidden, d_weight = torch.empty_like(hidden, dtype=torch.float64), torch.zeros_like(w)
    for h, t, d_h in zip(hidden.double().split(chunk), targets.split(chunk), d_hidden.split(chunk), strict=True):
        d_logits = torch.softmax(h @ w.mT, dim=-1)
        d_logits[torch.arange(len(t), device=t.device), t] -= 1
        d_logits /= len(targets)
        d_weight.addmm_(d_logits.mT, h)
        torch.mm(d_logits, w, out=d_h)
    return d_hidden, d_weight


def error(ours: Tensor, exact: Tensor) -> float:
    """Largest difference over the largest value, some rows at a time: fp64 copies are large."""
    differences = [
        float((a.double() - b).abs().max()) for a, b in zip(ours.split(8192), exact.split(8192), strict=True)
    ]
    return max(differences) / float(exact.abs().max())


def seconds_of(run: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Median."""
    seconds = []
    for _ in range(rounds):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.cuda.synchronize(device)


def peak_of(run: Callable[[], object], device: torch.device) -> int:
    if device.type == "cpu":
        return 0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def ways(shards: list[int], chunk: int) -> dict[str, tuple[Way, ...]]:
    """Name -> (what is timed, what gives all gradients)."""
    found = {"torch": (by_autograd(plain),) * 2, "whole": (whole(chunk),) * 2}
    for count in shards:
        found[f"{count} shards"] = (in_shards(count, chunk, keep=False), in_shards(count, chunk, keep=True))
    if find_spec("liger_kernel") is not None:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # pyright: ignore[reportMissingImports]

        fused = LigerFusedLinearCrossEntropyLoss()
        found["Liger"] = (by_autograd(lambda hidden, weight, targets: fused(weight, hidden, targets)),) * 2
    return found


def measure(args: argparse.Namespace, tokens: int, device: torch.device) -> list[Result]:
    torch.manual_seed(0)
    hidden = torch.randn(tokens, args.hidden, device=device).bfloat16()
    weight = (torch.randn(args.vocabulary, args.hidden, device=device) / args.hidden**0.5).bfloat16()
    targets = torch.randint(args.vocabulary, (tokens,), device=device)
    given, results = (hidden, weight, targets), []
    exact = [gradient.cpu() for gradient in in_fp64(*given)]
    for name, (timed, compared) in ways(args.shards, args.chunk).items():
        errors = [error(g.cpu(), e) for g, e in zip(compared(*given), exact, strict=True)]
        timed(*given)  # compiles
        peak = peak_of(lambda timed=timed: timed(*given), device)
        seconds = seconds_of(lambda timed=timed: timed(*given), device, args.rounds)
        results.append(Result(name, tokens, seconds * 1e3, peak, *errors))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--hidden", type=int, default=2560)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--shards", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--chunk", type=int, default=2048, help="tokens whose logits exist at once, in ours")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="also write the results there")
    args = parser.parse_args()

    device = torch.device(args.device)
    name = "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
    print(f"hidden {args.hidden}, vocabulary {args.vocabulary}, {name}, torch {torch.__version__}")
    results = [result for tokens in args.tokens for result in measure(args, tokens, device)]
    print(f"{'':12} tokens       ms   peak MiB  d_hidden  d_weight")
    for r in results:
        peak = r.peak_bytes / 2**20
        print(
            f"{r.name:12} {r.tokens:6d} {r.milliseconds:8.2f} {peak:10.1f}  {r.hidden_error:.1e}   {r.weight_error:.1e}"
        )
    if args.json:
        shape = {"hidden": args.hidden, "vocabulary": args.vocabulary, "chunk": args.chunk, "rounds": args.rounds}
        run = {"device": name, "torch": torch.__version__, **shape, "results": [asdict(r) for r in results]}
        args.json.write_text(json.dumps(run, indent=1))


if __name__ == "__main__":
    main()
