"""What is missing is told with the command that gives it."""

import resource
from pathlib import Path

import pytest
import torch

from slideformer.cli import main
from slideformer.commands import doctor


def huge_pages(root: Path, mode: str) -> doctor.Finding:
    path = root / "sys/kernel/mm/transparent_hugepage/enabled"
    path.parent.mkdir(parents=True)
    path.write_text(mode)
    return doctor._huge_pages(root)


@pytest.mark.parametrize("mode", ["always [madvise] never\n", "[always] madvise never\n"])
def test_huge_pages_that_may_be_asked_for_are_fine(tmp_path: Path, mode: str):
    assert huge_pages(tmp_path, mode).remedy == ""


def test_huge_pages_that_are_off_come_with_a_command(tmp_path: Path):
    assert huge_pages(tmp_path, "always madvise [never]\n").remedy.startswith("echo madvise | sudo tee ")


def test_a_kernel_without_huge_pages(tmp_path: Path):
    assert "no transparent huge pages" in doctor._huge_pages(tmp_path).found


def test_the_limit_of_locked_memory():
    infinite = resource.RLIM_INFINITY
    assert doctor._pinned(infinite, infinite).found == "none"
    assert "64.0 MiB" in doctor._pinned(2**26, infinite).found
    assert "ulimit -l unlimited" in doctor._pinned(2**26, infinite).found
    assert "docker" in doctor._pinned(2**26, 2**26).found


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_comes_with_a_command():
    assert doctor._gpu().remedy


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        (
            "proc/driver/nvidia/version",
            "NVRM version: NVIDIA 580.159\nGCC version: 13\n",
            "NVRM version: NVIDIA 580.159",
        ),
        ("sys/module/amdgpu/version", "6.10.5\n", "6.10.5"),
    ],
)
def test_the_driver_is_read_from_the_kernel(tmp_path: Path, path: str, text: str, found: str):
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert doctor._driver(tmp_path).found == found


def test_no_driver(tmp_path: Path):
    assert doctor._driver(tmp_path).found == "none is loaded"


def test_a_missing_package_comes_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "_installed", lambda package: "")
    assert {finding.remedy for finding in doctor._versions()} == {"", *(f"pip install {p}" for p in doctor.PACKAGES)}
    texts = [finding.found for finding in doctor._optional_packages()]
    assert all("slideformer[" in text for text in texts) and len(texts) == len(doctor.OPTIONAL_PACKAGES)


@pytest.mark.parametrize("gpu", [True, False])
def test_triton_is_missed_only_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch, gpu: bool):
    monkeypatch.setattr(doctor, "_installed", lambda package: "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert bool(doctor._triton().remedy) == gpu


def test_the_command_prints_every_line(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for what in (
        "python",
        "torch",
        "gguf",
        "GPU",
        "GPU driver",
        "triton",
        "CPU AdamW",
        "host memory",
        "locked memory",
        "huge pages",
        "disk",
    ):
        assert f"\n  {what}" in f"\n{text}" or f"\n! {what}" in f"\n{text}"
