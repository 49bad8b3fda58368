"""Limits are read from where the kernel writes them; no limit is None."""

from pathlib import Path

import pytest

from slideformer.plan.limits import memory_limits


def system(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": "MemAvailable: 2000 kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("memory.max", "1000000\n", 1000000),
        ("memory.max", "max\n", None),
        ("memory/memory.limit_in_bytes", "5000", 5000),
        ("memory/memory.limit_in_bytes", "9223372036854771712", None),
    ],
)
def test_the_container_s_limit(tmp_path: Path, name: str, text: str, expected: int | None):
    assert memory_limits(system(tmp_path, {f"sys/fs/cgroup/{name}": text})).host_limit_bytes == expected


def test_numa_nodes_and_shared_memory(tmp_path: Path):
    files = {f"sys/devices/system/node/{name}/cpulist": "0" for name in ("node0", "node1")}
    found = memory_limits(system(tmp_path, {**files, "sys/devices/system/node/online": "0-1", "dev/shm/x": ""}))
    assert found.numa_nodes == 2 and found.shared_bytes and found.host_free_bytes == 2000 * 1024


def test_a_system_without_any_of_it(tmp_path: Path):
    found = memory_limits(system(tmp_path, {}))
    assert found.numa_nodes == 1 and found.shared_bytes is None and found.host_limit_bytes is None
