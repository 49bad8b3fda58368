"""A machine that nobody has, with rates that are easy to reckon with."""

from slideformer.plan.limits import MemoryLimits
from slideformer.plan.rates import ComputeRates, DiskRates, HostRates, LinkRates, MachineRates
from slideformer.units import GIB

COMPUTE = ComputeRates({"bf16": 100e12, "fp32": 10e12}, {"bf16": 50e12, "fp32": 5e12}, 1e12)
LINK = LinkRates(25e9, 25e9, 20e9, 20e9)


def machine(gpu: bool = True) -> MachineRates:
    memory = MemoryLimits(64 * GIB, device_free_bytes=24 * GIB if gpu else None)
    host = HostRates(100e9, 90e9, 2e9, 1e9 if gpu else None)
    return MachineRates(
        "Made-up GPU" if gpu else "Made-up CPU", "a test", "2026-01-01", COMPUTE, host, memory, LINK if gpu else None,
        DiskRates("/data", 2e9, 1e9),
    )  # fmt: skip
