"""Measures this machine once, in well under a minute: what `slideformer probe` does.

Each rate is the best of several rounds, after one that is not counted: first touches, thread pools and library set-up
are over then, and what else runs on the machine only ever makes a round slower. The matmul rate is the median over a
second instead: a GPU under load lowers its clock, and a step is longer than the moment before it does. AdamW's is a
median as well, with the threads that the engine gives it: it is what bounds small steps, and they have no best rounds.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from slideformer.kernels.attention import preferred_attention
from slideformer.memory.host import HostAllocator
from slideformer.optim.adamw import AdamWStep, LayerAdam
from slideformer.optim.threads import cpu_threads, optimizer_threads
from slideformer.plan.limits import memory_limits
from slideformer.plan.probe_disk import measure_disk
from slideformer.plan.probe_link import LinkProbe
from slideformer.plan.rates import LONG_ROW, SHORT_ROW, ComputeRates, HostRates, LinkRates, MachineRates, cpu_name
from slideformer.units import MIB

ROUNDS = 5
SUSTAINED_SECONDS = 1.0
HOST_BYTES = 256 * MIB  # of one array: larger than any cache
ADAMW_PARAMETERS = 128 * MIB  # 1.75 GiB of state and gradient: no cache keeps a useful part of it
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
MATMUL_WIDTH = {"cuda": 8192, "cpu": 1024}
ATTENTION_SHAPE = {"cuda": (8, 32, SHORT_ROW, 128), "cpu": (1, 8, 256, 64)}  # sequences, heads, tokens, width of a head
LONG_ATTENTION_SHAPE = {"cuda": (1, 32, LONG_ROW, 128)}  # a CPU would take minutes
ELEMENTS = {"cuda": 2**28, "cpu": 2**25}

Timer = Callable[[Callable[[], object]], float]


def probe(directory: Path, call_seconds: Callable[[torch.device], float]) -> MachineRates:
    """Measure compute, copies, host memory, AdamW and the disk of `directory`.

    Args:
        call_seconds: measures what calling one operator costs the host beside that device.

    Takes about 2.5 GiB of host memory, 2 GiB of the GPU and 0.5 GiB of the disk while it runs.

    Raises:
        ConfigError: the directory cannot be written.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    compute = measure_compute(device, call_seconds(device))
    adamw = adamw_step(optimizer_threads(device.type == "cuda"))
    adamw()
    alone = median(wall_seconds(adamw) for _ in range(ROUNDS))
    link, under = measure_link(device, adamw, alone) if device.type == "cuda" else (None, None)
    return MachineRates(
        name=torch.cuda.get_device_name() if device.type == "cuda" else cpu_name(),
        source="slideformer probe",
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
        compute=compute,
        host=HostRates(*host_bandwidth(), ADAMW_PARAMETERS / alone, under),
        memory=memory_limits(),
        link=link,
        disk=measure_disk(directory),
    )


def measure_link(device: torch.device, adamw: Callable[[], None], seconds_alone: float) -> tuple[LinkRates, float]:
    """(rates of copies, parameters that AdamW updates per second beside them)."""
    allocator = HostAllocator(pin=True)
    try:
        link = LinkProbe(device, allocator)
        return link.measure(), ADAMW_PARAMETERS / link.seconds_under_copies(adamw, seconds_alone)
    finally:
        torch.cuda.synchronize()
        allocator.close()


def best_seconds(work: Callable[[], object], timer: "Timer | None" = None) -> float:
    """The shortest of several runs, after one that is not counted."""
    timer = timer or wall_seconds
    work()
    return min(timer(work) for _ in range(ROUNDS))


def wall_seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def event_seconds(work: Callable[[], object]) -> float:
    """Time between two events around what `work` puts into the GPU's current stream."""
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    work()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1e3


def measure_compute(device: torch.device, call_seconds: float) -> ComputeRates:
    """Matmul, attention and memory rates, with the threads that this process uses on a CPU."""
    timer = event_seconds if device.type == "cuda" else wall_seconds
    matmul = {name: matmul_rate(device, dtype, timer) for name, dtype in DTYPES.items()}
    short, long = (
        {name: attention_rate(device, shape, dtype, timer) for name, dtype in DTYPES.items()} if shape else {}
        for shape in (ATTENTION_SHAPE[device.type], LONG_ATTENTION_SHAPE.get(device.type))
    )
    x = torch.zeros(ELEMENTS[device.type], dtype=torch.bfloat16, device=device)
    y = torch.zeros_like(x)
    memory = 3 * x.nbytes / best_seconds(lambda: torch.add(x, y, out=y), timer)
    return ComputeRates(matmul, short, memory, call_seconds, long)


def matmul_rate(device: torch.device, dtype: torch.dtype, timer: Timer) -> float:
    """Floating-point operations per second, sustained."""
    width = MATMUL_WIDTH[device.type]
    a, b = (torch.randn(width, width, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(a)
    torch.mm(a, b, out=out)
    started, seconds = time.perf_counter(), []
    while time.perf_counter() - started < SUSTAINED_SECONDS or len(seconds) < ROUNDS:
        seconds.append(timer(lambda: torch.mm(a, b, out=out)))
    return 2 * width**3 / median(seconds)


def attention_rate(device: torch.device, shape: tuple[int, int, int, int], dtype: torch.dtype, timer: Timer) -> float:
    """Operations per second of causal attention, forward and backward; every pair of tokens counts, also masked ones.

    Forward multiplies twice (scores, values); a fused backward five times, since it computes the scores again.
    """
    batch, heads, tokens, width = shape
    q, k, v = (torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for _ in range(3))
    dy = torch.randn(shape, dtype=dtype, device=device)

    def run() -> tuple[Tensor, ...]:
        with preferred_attention(device):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return torch.autograd.grad(y, (q, k, v), dy)

    return 7 * 2 * batch * heads * tokens**2 * width / best_seconds(run, timer)


def host_bandwidth() -> tuple[float, float]:
    """(copy, triad) in bytes read and written per second, all threads; what a write reads first is not counted."""
    with _threads(cpu_threads()):
        a, b, c = (torch.zeros(HOST_BYTES // 4) for _ in range(3))
        copy = 2 * HOST_BYTES / best_seconds(lambda: a.copy_(b))
        triad = 3 * HOST_BYTES / best_seconds(lambda: torch.add(b, c, alpha=2.0, out=a))
    return copy, triad


def adamw_step(threads: int) -> Callable[[], None]:
    """One update of `ADAMW_PARAMETERS` parameters, as training does it."""
    n = ADAMW_PARAMETERS
    hi, lo = torch.zeros(n, dtype=torch.bfloat16), torch.zeros(n, dtype=torch.int16)
    adam = LayerAdam(hi, lo, torch.zeros(n), torch.zeros(n), [(0, n, True)], threads)
    gradient = torch.zeros(n, dtype=torch.bfloat16)
    hyper = AdamWStep(learning_rate=1e-4, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.01, step=1)
    return lambda: adam.step(gradient, hyper)


class _threads:  # noqa: N801  # reads as a word in `with`
    """PyTorch's threads, for a while."""

    def __init__(self, count: int):
        self._count, self._before = count, torch.get_num_threads()

    def __enter__(self) -> None:
        torch.set_num_threads(self._count)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)
