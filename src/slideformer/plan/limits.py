"""What a machine allows of its memory, beside what is free: container limits, locked pages, shared memory, NUMA."""

import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from slideformer.plan.machine import free_host_bytes

UNLIMITED_V1 = 2**60  # cgroup v1 has no word for it, but writes a number near 2^63


@dataclass(frozen=True)
class MemoryLimits:
    """Bytes; None is no limit, or no such thing.

    Attributes:
        host_free_bytes: that this process may still take.
        host_limit_bytes: the container's limit.
        locked_limit_bytes: memory a process may lock (RLIMIT_MEMLOCK).
        shared_bytes: free in /dev/shm.
        device_free_bytes, device_total_bytes: of the GPU.
        numa_nodes: of host memory.
    """

    host_free_bytes: int
    host_limit_bytes: int | None = None
    locked_limit_bytes: int | None = None
    shared_bytes: int | None = None
    device_free_bytes: int | None = None
    device_total_bytes: int | None = None
    numa_nodes: int = 1


def memory_limits(root: Path = Path("/")) -> MemoryLimits:
    """Read them now.

    Args:
        root: where /proc, /sys and /dev are, for tests.
    """
    device_free, device_total = torch.cuda.mem_get_info() if torch.cuda.is_available() else (None, None)
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    shared = root / "dev/shm"
    return MemoryLimits(
        host_free_bytes=free_host_bytes(root),
        host_limit_bytes=_container_limit(root),
        locked_limit_bytes=None if locked == resource.RLIM_INFINITY else locked,
        shared_bytes=shutil.disk_usage(shared).free if shared.is_dir() else None,
        device_free_bytes=device_free,
        device_total_bytes=device_total,
        numa_nodes=max(1, len(list((root / "sys/devices/system/node").glob("node[0-9]*")))),
    )


def _container_limit(root: Path) -> int | None:
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroup v2, v1
        try:
            text = (root / "sys/fs/cgroup" / name).read_text().strip()
        except OSError:
            continue
        return None if text == "max" or int(text) >= UNLIMITED_V1 else int(text)
    return None
