"""The number of threads follows the affinity mask and the cgroup's CPU quota."""

from pathlib import Path

import pytest

from slideformer.optim import threads
from slideformer.optim.threads import cpu_threads, optimizer_threads


@pytest.fixture(autouse=True)
def sixteen_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: set(range(16)))


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_affinity_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert cpu_threads(tmp_path) == 16
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: {3, 5})
    assert cpu_threads(tmp_path) == 2


@pytest.mark.parametrize(
    ("cpu_max", "expected"),
    [("400000 100000", 4), ("250000 100000", 2), ("50000 100000", 1), ("max 100000", 16), ("6400000 100000", 16)],
)
def test_cgroup_v2_quota(tmp_path: Path, cpu_max: str, expected: int):
    write(tmp_path, {"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/cpu.max": cpu_max + "\n"})
    assert cpu_threads(tmp_path) == expected


def test_cgroup_v2_takes_the_tightest_group_around(tmp_path: Path):
    files = {
        "proc/self/cgroup": "0::/slice/job/step\n",
        "sys/fs/cgroup/slice/cpu.max": "300000 100000\n",
        "sys/fs/cgroup/slice/job/cpu.max": "max 100000\n",
        "sys/fs/cgroup/slice/job/step/cpu.max": "800000 100000\n",
    }
    assert cpu_threads(write(tmp_path, files)) == 3


def test_cgroup_v2_in_a_container_that_sees_the_hosts_path(tmp_path: Path):
    files = {"proc/self/cgroup": "0::/host/only\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}
    assert cpu_threads(write(tmp_path, files)) == 2


@pytest.mark.parametrize(("quota", "expected"), [("500000", 5), ("-1", 16)])
def test_cgroup_v1_quota(tmp_path: Path, quota: str, expected: int):
    files = {
        "proc/self/cgroup": "9:memory:/job\n4:cpu,cpuacct:/job\n2:cpuset:/job\n",
        "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": quota + "\n",
        "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/job/cpu.cfs_quota_us": "100000\n",  # of another controller: not read
    }
    assert cpu_threads(write(tmp_path, files)) == expected


def test_this_machine_has_at_least_one():
    assert cpu_threads() >= 1


@pytest.mark.parametrize(("cpus", "beside", "alone"), [(16, 14, 16), (6, 4, 6), (4, 4, 4), (2, 2, 2)])
def test_beside_an_accelerator_two_are_left(cpus: int, beside: int, alone: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(threads, "cpu_threads", lambda: cpus)
    assert (optimizer_threads(True), optimizer_threads(False)) == (beside, alone)
