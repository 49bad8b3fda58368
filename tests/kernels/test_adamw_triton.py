"""The Triton AdamW without a GPU: interpreted, it gives the CPU kernel's bits."""

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def test_interpreted_equals_the_cpu_kernel():
    triton = pytest.importorskip("triton")
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9):
        pytest.skip("this interpreter's fused multiply-add rounds twice")
    done = subprocess.run([sys.executable, "-m", "interpreted_adamw"], cwd=TESTS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the same bits" in done.stdout
