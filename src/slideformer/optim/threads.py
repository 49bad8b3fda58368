"""How many CPU threads this process may really use."""

import os
from pathlib import Path


def cpu_threads(root: Path = Path("/")) -> int:
    """CPUs in this process's affinity mask, or fewer where a cgroup (v1 or v2) limits its CPU time; at least 1.

    A quota is rounded down: a thread beyond it would only be throttled, and its team would wait for it.

    Args:
        root: where `proc` and `sys` are mounted.
    """
    affinity = len(os.sched_getaffinity(0))
    return max(1, int(min([affinity, *_cgroup_quotas(root)])))


def optimizer_threads(beside_accelerator: bool) -> int:
    """All, or beside an accelerator all but those for the thread that submits forward and autograd's, that backward."""
    available = cpu_threads()
    return available - 2 if beside_accelerator and available > 4 else available


def _cgroup_quotas(root: Path) -> list[float]:
    """CPU limits, in CPUs, of this process's control groups and of all groups around them."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    quotas: list[float] = []
    for line in memberships:  # "0::/path" in v2, "4:cpu,cpuacct:/path" in v1
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, read_quota = root / "sys/fs/cgroup", _quota_v2
        elif "cpu" in controllers.split(","):
            mount, read_quota = root / "sys/fs/cgroup" / controllers, _quota_v1
        else:
            continue
        group = mount / path.strip("/")
        # Inside a container the path may be the host's; what is not there is skipped, the mount itself is always read.
        for directory in [group, *(parent for parent in group.parents if parent.is_relative_to(mount))]:
            try:
                quota = read_quota(directory)
            except (OSError, ValueError):
                continue
            if quota is not None:
                quotas.append(quota)
    return quotas


def _quota_v2(group: Path) -> float | None:
    """`cpu.max` holds "max 100000" or "<quota> <period>" in microseconds."""
    quota, period = (group / "cpu.max").read_text().split()
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(group: Path) -> float | None:
    """`cpu.cfs_quota_us` is -1 where there is no limit."""
    quota = int((group / "cpu.cfs_quota_us").read_text())
    return None if quota < 0 else quota / int((group / "cpu.cfs_period_us").read_text())
