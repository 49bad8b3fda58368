"""The probe measures what it says; here with tiny sizes, since how fast this machine is does not matter."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from slideformer.errors import ConfigError
from slideformer.plan import probe, probe_disk
from slideformer.units import MIB


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[str, Any] = {
        "SUSTAINED_SECONDS": 0.0, "ROUNDS": 2, "HOST_BYTES": MIB, "ADAMW_PARAMETERS": 10000,
        "MATMUL_WIDTH": {"cpu": 64}, "ATTENTION_SHAPE": {"cpu": (1, 2, 16, 8)}, "ELEMENTS": {"cpu": 1000},
    }  # fmt: skip
    for name, value in sizes.items():
        monkeypatch.setattr(probe, name, value)
    monkeypatch.setattr(probe, "measure_disk", lambda directory: probe_disk.measure_disk(directory, 2 * MIB))


@pytest.mark.usefixtures("quick")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_has_all_rates_but_the_link_s(tmp_path: Path):
    rates = probe.probe(tmp_path, lambda device: 1e-6)
    assert not rates.has_gpu and rates.host.adamw_parameters_under_copies is None
    compute, host, disk = rates.compute, rates.host, rates.disk
    assert set(compute.matmul_flops) == set(compute.attention_flops) == {"bf16", "fp32"}
    assert disk and min(
        *compute.matmul_flops.values(), *compute.attention_flops.values(), compute.memory_bytes, compute.call_seconds,
        host.copy_bytes, host.triad_bytes, host.adamw_parameters, disk.read_bytes, disk.write_bytes,
    ) > 0  # fmt: skip
    assert rates.measured.startswith("20") and rates.name and rates.memory.host_free_bytes > 0
    assert os.listdir(tmp_path) == []


def test_the_shortest_round_counts_and_the_first_does_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probe, "ROUNDS", 3)
    calls, seconds = [], iter([3.0, 1.0, 2.0])

    def timer(work: Any) -> float:
        work()
        return next(seconds)

    assert probe.best_seconds(lambda: calls.append(1), timer) == 1.0
    assert len(calls) == 4


@pytest.mark.usefixtures("quick")
def test_rates_are_work_over_time():
    def tenth(work: Any) -> float:
        work()
        return 0.1

    cpu = torch.device("cpu")
    assert probe.matmul_rate(cpu, torch.float32, tenth) == pytest.approx(2 * 64**3 / 0.1)
    assert probe.attention_rate(cpu, (1, 2, 16, 8), torch.float32, tenth) == pytest.approx(7 * 2 * 2 * 16**2 * 8 / 0.1)


@pytest.mark.usefixtures("quick")
def test_threads_are_left_as_they_were():
    before = torch.get_num_threads()
    probe.host_bandwidth()
    assert torch.get_num_threads() == before


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot measure the disk of .*none: No such file"):
        probe_disk.measure_disk(tmp_path / "none")


def test_a_file_system_without_direct_reads_is_measured_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    open_file = os.open

    def refuse(path: Any, flags: int, *mode: int, **where: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return open_file(path, flags, *mode, **where)

    monkeypatch.setattr(probe_disk.os, "open", refuse)
    rates = probe_disk.measure_disk(tmp_path, 2 * MIB)
    assert rates.read_bytes > 0 and rates.write_bytes > 0
