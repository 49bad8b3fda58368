"""The systems that `compare.py` compares, each measured on one case in this process.

Every system trains the same model (random weights, bf16 computation, Liger kernels on a GPU, blocks recomputed unless
its name says otherwise) on the same random tokens, with AdamW over an fp32 master and fp32 moments. What offloads has
both pinned in host memory.
"""

import time
from collections.abc import Callable
from typing import Any

import offload_deepspeed
import offload_fsdp
import resident
import torch
from resident import Step
from torch import Tensor

from slideformer.bench.case import Case
from slideformer.bench.model_config import config_of
from slideformer.bench.sliding import enforce, measure, measured_matmul_flops
from slideformer.listeners.metrics import host_peak_bytes

Builder = Callable[[Any, torch.device, int, int], Step]  # configuration, device, sequences and micro-batches of a step

BUILDERS: dict[str, Builder] = {
    "resident": lambda config, device, b, m: resident.build(config, device),
    "resident-kept": lambda config, device, b, m: resident.build(config, device, recompute=False),
    "deepspeed-zero3": lambda config, device, b, m: offload_deepspeed.build(config, device, 3, b, m),
    "deepspeed-zero2": lambda config, device, b, m: offload_deepspeed.build(config, device, 2, b, m),
    "fsdp2": lambda config, device, b, m: offload_fsdp.build(config, device),
}
SLIDING = "sliding"
MASTERS = {
    SLIDING: "fp32 in host memory, as two 16-bit planes, the high one the bf16 weights",
    "resident": resident.MASTER,
    "resident-kept": resident.MASTER,
    "deepspeed-zero3": offload_deepspeed.MASTER,
    "deepspeed-zero2": offload_deepspeed.MASTER,
    "fsdp2": offload_fsdp.MASTER,
}
RESIDENT_MICRO_BATCH = 8  # sequences: more gain nothing there, and what offloads would move its weights more often


def micro_batch_counts(system: str, sequences: int) -> list[int]:
    """How a step may be divided, the preferred way first; the next is for when memory does not hold it."""
    first = -(-sequences // RESIDENT_MICRO_BATCH) if system.startswith("resident") else 1
    return [count for count in range(first, sequences + 1) if sequences % count == 0 and count % first == 0]


def measure_system(system: str, case: Case, micro_batches: int) -> dict[str, Any]:
    """Tokens per second and peak bytes of one system."""
    if system == SLIDING:
        return {"master": MASTERS[system], **measure(case)}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    enforce(case.gpu_budget_bytes)
    rate = case.matmul_flops or measured_matmul_flops(device, torch.bfloat16)
    config = config_of(case)
    started = time.perf_counter()
    step = BUILDERS[system](config, device, case.sequences, micro_batches)
    built = time.perf_counter() - started
    reset_peaks()
    losses, elapsed = _train(step, case, micro_batches, config.vocab_size, device)
    return {
        "master": MASTERS[system],
        "micro_batches": micro_batches,
        "matmul_flops": rate,
        "tokens_per_second": case.tokens * case.steps / elapsed,
        "step_seconds": elapsed / case.steps,
        "loading_seconds": built,
        "losses": [losses[0], losses[-1]],
        **peaks(),
    }


def _train(step: Step, case: Case, micro_batches: int, vocabulary: int, device: torch.device):
    """(losses, seconds of the counted steps)."""
    losses, begun = [], time.perf_counter()
    for k in range(case.warm_up + case.steps):
        if k == case.warm_up:
            _synchronize()
            begun = time.perf_counter()
        losses.append(step(random_tokens(case.sequences, case.length, vocabulary, k).to(device), micro_batches))
    _synchronize()
    return [float(loss) for loss in losses], time.perf_counter() - begun


def random_tokens(sequences: int, length: int, vocabulary: int, seed: int) -> Tensor:
    return torch.randint(0, vocabulary, (sequences, length), generator=torch.Generator().manual_seed(seed))


def reset_peaks() -> None:
    """What building took does not count."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peaks() -> dict[str, Any]:
    """Bytes since then, of the GPU, and since the process began, of the host."""
    found: dict[str, Any] = {"host_peak_bytes": host_peak_bytes()}
    if torch.cuda.is_available():
        found["gpu_allocated_bytes"] = torch.cuda.max_memory_allocated()
        found["gpu_reserved_bytes"] = torch.cuda.max_memory_reserved()
        found["pinned_bytes"] = getattr(torch.cuda, "host_memory_stats", dict)().get("allocated_bytes.peak", 0)
    return found


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
