"""A machine's rates as a table that is read at a glance."""

from collections.abc import Iterator

from slideformer.plan.limits import MemoryLimits
from slideformer.plan.rates import MachineRates
from slideformer.units import format_bytes


def render_rates(rates: MachineRates) -> str:
    """Plain text, a figure a line."""
    head = f"{rates.name} ({rates.source}{f', {rates.measured}' if rates.measured else ''})"
    rows = [*_rates(rates), *_memory(rates.memory)]
    width = max(len(name) for name, _ in rows)
    return "\n".join([head, *(f"  {name:<{width}}  {value}" for name, value in rows)])


def _rates(rates: MachineRates) -> Iterator[tuple[str, str]]:
    compute, host, link, disk = rates.compute, rates.host, rates.link, rates.disk
    for name, rate in compute.matmul_flops.items():
        yield f"matmul, {name}", f"{rate / 1e12:.3g} TFLOP/s"
    for name, rate in compute.attention_flops.items():
        long = compute.long_attention_flops.get(name)
        over_long_rows = f", {long / 1e12:.3g} over long rows" if long else ""
        yield f"attention, {name}", f"{rate / 1e12:.3g} TFLOP/s{over_long_rows}"
    yield "GPU memory" if link else "elementwise operations", _bytes(compute.memory_bytes)
    if link:
        yield "host to GPU", f"{_bytes(link.h2d_bytes)} alone, {_bytes(link.h2d_together_bytes)} both ways"
        yield "GPU to host", f"{_bytes(link.d2h_bytes)} alone, {_bytes(link.d2h_together_bytes)} both ways"
    yield "host memory", f"{_bytes(host.copy_bytes)} copy, {_bytes(host.triad_bytes)} triad"
    under = host.adamw_parameters_under_copies
    beside = f", {under / 1e9:.3g} under copies" if under else ""
    yield "AdamW", f"{host.adamw_parameters / 1e9:.3g} Gparam/s{beside}"
    if disk:
        yield f"disk of {disk.directory}", f"{_bytes(disk.read_bytes)} read, {_bytes(disk.write_bytes)} write"


def _memory(memory: MemoryLimits) -> Iterator[tuple[str, str]]:
    yield "host memory, free", format_bytes(memory.host_free_bytes)
    yield "container's limit", _or_none(memory.host_limit_bytes)
    yield "locked memory limit", _or_none(memory.locked_limit_bytes)
    yield "/dev/shm, free", _or_none(memory.shared_bytes)
    if memory.device_free_bytes is not None and memory.device_total_bytes is not None:
        total = format_bytes(memory.device_total_bytes)
        yield "GPU memory, free", f"{format_bytes(memory.device_free_bytes)} of {total}"
    yield "NUMA nodes", str(memory.numa_nodes)


def _bytes(rate: float) -> str:
    return f"{rate / 1e9:.3g} GB/s"


def _or_none(size_bytes: int | None) -> str:
    return "none" if size_bytes is None else format_bytes(size_bytes)
