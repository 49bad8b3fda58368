"""Free memory is what the system has available, or what the container leaves, whichever is less."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from slideformer.errors import ConfigError
from slideformer.plan.machine import DISK_MARGIN, HOST_MARGIN, Machine, disk_budget_bytes, free_host_bytes


def system(root: Path, available_kib: int, **cgroup: str) -> Path:
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(
        f"MemTotal: 99999 kB\nMemFree: 1 kB\nMemAvailable:   {available_kib} kB\nBuffers: 5 kB\n"
    )
    for name, text in cgroup.items():
        file = root / "sys/fs/cgroup" / name.replace("__", "/").replace("DOT", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_without_a_container_it_is_what_is_available(tmp_path: Path):
    assert free_host_bytes(system(tmp_path, 2000)) == 2000 * 1024


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [
        ("max", "5", 2000 * 1024),
        ("1000000\n", "400000\n", 600000),
        ("1000", "4000", 0),
        ("99999999999", "0", 2000 * 1024),
    ],
)
def test_cgroup_v2(tmp_path: Path, limit: str, used: str, expected: int):
    root = system(tmp_path, 2000, memoryDOTmax=limit, memoryDOTcurrent=used)
    assert free_host_bytes(root) == expected


def test_cgroup_v1(tmp_path: Path):
    root = system(tmp_path, 2000, memory__memoryDOTlimit_in_bytes="900000", memory__memoryDOTusage_in_bytes="100000")
    assert free_host_bytes(root) == 800000


def test_the_cpu_leaves_a_margin_to_everything_else(tmp_path: Path):
    machine = Machine.measure(torch.device("cpu"), system(tmp_path, 2000))
    assert machine.host_bytes == int(2000 * 1024 * (1 - HOST_MARGIN)) and machine.device_bytes is None


def test_this_machine_has_memory():
    assert free_host_bytes() > 10**8


@pytest.mark.gpu
def test_a_gpu_has_a_name_and_memory():
    machine = Machine.measure(torch.device("cuda"))
    assert machine.name == torch.cuda.get_device_name() and machine.device_bytes is not None
    assert 0 < machine.device_bytes < torch.cuda.mem_get_info()[1]


def test_the_disk_is_what_is_free_less_a_margin_or_a_smaller_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    assert disk_budget_bytes(tmp_path, None) == int(1000 * (1 - DISK_MARGIN))
    assert disk_budget_bytes(tmp_path, 300) == 300
    assert disk_budget_bytes(tmp_path, 5000) == int(1000 * (1 - DISK_MARGIN))
    assert disk_budget_bytes(None, None) is None


def test_a_directory_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match=r"budget.disk: there is no directory(.|\n)*budget.offload_dir"):
        disk_budget_bytes(None, 5)
    for path in (tmp_path / "missing", tmp_path / "file"):
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match=f"budget.offload_dir: {path} is not a directory"):
            disk_budget_bytes(path, None)
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(ConfigError, match=f"budget.offload_dir: {tmp_path} cannot be written to"):
        disk_budget_bytes(tmp_path, None)
