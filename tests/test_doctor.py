"""What is missing is told with the command that gives it."""

import resource
from pathlib import Path

import pytest
import torch

from slideformer import doctor
from slideformer.cli import main


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


def test_the_command_prints_every_line(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for what in ("python", "torch", "GPU", "CPU AdamW", "host memory", "locked memory", "huge pages", "disk"):
        assert f"\n  {what}" in f"\n{text}" or f"\n! {what}" in f"\n{text}"
