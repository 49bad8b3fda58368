"""The peak of host memory."""

import subprocess
import sys

from slideformer.units import MIB


def test_host_peak_remembers_what_was_freed():
    script = """
from slideformer.listeners.metrics import host_peak_bytes
before = host_peak_bytes()
block = bytearray(b"x") * 2**26
del block
print(host_peak_bytes() - before)
"""
    grown = int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert 60 * MIB < grown < 70 * MIB
