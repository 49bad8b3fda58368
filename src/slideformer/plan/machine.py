"""What this machine has to give: memory now free, within the limits of its container."""

import os
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from slideformer.errors import ConfigError

HOST_MARGIN = 0.05  # left to everything else when no budget is given
DEVICE_MARGIN = 0.06  # fragmentation of the caching allocator
DISK_MARGIN = 0.05  # most file systems become slow when they are full


@dataclass(frozen=True)
class Machine:
    """Free memory in bytes; `device_bytes` is None where layers compute in host memory."""

    name: str
    host_bytes: int
    device_bytes: int | None

    @staticmethod
    def measure(device: torch.device, root: Path = Path("/")) -> "Machine":
        """Read what is free now.

        Args:
            root: where /proc and /sys are, for tests.
        """
        host = int(free_host_bytes(root) * (1 - HOST_MARGIN))
        if device.type == "cpu":
            return Machine("CPU", host, None)
        free, _ = torch.cuda.mem_get_info(device)
        return Machine(torch.cuda.get_device_name(device), host, free)

    def allocatable_bytes(self, budget_bytes: int | None) -> int | None:
        """What may be allocated of the device's free memory, or of a smaller budget, so that fragments fit as well."""
        if self.device_bytes is None:
            return None
        return int(min(self.device_bytes, budget_bytes or self.device_bytes) * (1 - DEVICE_MARGIN))


def free_host_bytes(root: Path = Path("/")) -> int:
    """Memory this process may still take: what is available, or what its cgroup (v2 or v1) leaves, the smaller."""
    meminfo = (root / "proc/meminfo").read_text()
    available = int(meminfo.partition("MemAvailable:")[2].split()[0]) * 1024
    cgroup = root / "sys/fs/cgroup"
    limits = [
        _room(cgroup / "memory.max", cgroup / "memory.current"),
        _room(cgroup / "memory/memory.limit_in_bytes", cgroup / "memory/memory.usage_in_bytes"),
    ]
    return min([available, *(room for room in limits if room is not None)])


def disk_budget_bytes(directory: Path | None, budget_bytes: int | None) -> int | None:
    """What may be taken of the file system of `directory`: the budget, and no more than is free, less a margin.

    None where nothing may be: there is no directory.

    Raises:
        ConfigError: there is a budget without a directory, or this process may not write in it.
    """
    if directory is None:
        if budget_bytes is None:
            return None
        raise ConfigError("budget.disk: there is no directory", "set budget.offload_dir to one on a fast local disk")
    if not directory.is_dir():
        raise ConfigError(
            f"budget.offload_dir: {directory} is not a directory", "make it, on a fast local disk, or leave it out"
        )
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigError(f"budget.offload_dir: {directory} cannot be written to", "give write permission, or another")
    free = int(shutil.disk_usage(directory).free * (1 - DISK_MARGIN))
    return free if budget_bytes is None else min(free, budget_bytes)


def resident_bytes() -> int:
    """Host memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _room(limit: Path, used: Path) -> int | None:
    try:
        text = limit.read_text().strip()
        return None if text == "max" else max(0, int(text) - int(used.read_text()))
    except OSError:
        return None
