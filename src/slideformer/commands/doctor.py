"""`slideformer doctor`: what this machine has for a run, and for what is missing, the command that gives it."""

import platform
import resource
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from slideformer.units import format_bytes

PACKAGES = ("slideformer", "torch", "transformers", "tokenizers", "safetensors", "datasets")
# Package -> what is missing without it, and what installs it.
OPTIONAL_PACKAGES = {
    "liger-kernel": ("GPU runs then use PyTorch's own kernels", "pip install 'slideformer[gpu]'"),
    "gguf": ("`slideformer demo` then cannot read its model", "pip install 'slideformer[demo]'"),
    "matplotlib": ("`slideformer plan --plot` then cannot draw", "pip install 'slideformer[plot]'"),
}
TRITON_PACKAGES = ("triton", "pytorch-triton-rocm", "triton-rocm")
DRIVER_FILES = ("proc/driver/nvidia/version", "sys/module/amdgpu/version")


@dataclass(frozen=True)
class Finding:
    """One line of the report; `remedy` is empty where nothing is missing."""

    what: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{'!' if self.remedy else ' '} {self.what:<22} {self.found}"
        return f"{line}\n{'':<25}{self.remedy}" if self.remedy else line


def examine(directory: Path, root: Path = Path("/")) -> Iterator[Finding]:
    """Look at everything a run depends on; changes nothing.

    Args:
        directory: where runs would be written.
        root: where /proc and /sys are, for tests.
    """
    yield from _versions()
    yield from _optional_packages()
    yield _gpu()
    yield _driver(root)
    yield _triton()
    yield _instructions()
    yield _memory(root)
    yield _pinned(*resource.getrlimit(resource.RLIMIT_MEMLOCK))
    yield _huge_pages(root)
    yield _rates()
    yield Finding("disk", f"{format_bytes(shutil.disk_usage(directory).free)} free in {directory}")


def _versions() -> Iterator[Finding]:
    yield Finding("python", platform.python_version())
    for name in PACKAGES:
        found = _installed(name)
        yield Finding(name, found or "not installed", "" if found else f"pip install {name}")


def _optional_packages() -> Iterator[Finding]:
    for name, (without, command) in OPTIONAL_PACKAGES.items():
        yield Finding(name, _installed(name) or f"not installed; {without} ({command})")


def _installed(package: str) -> str:
    """Its version; "" where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
        name = torch.cuda.get_device_name()
        return Finding("GPU", f"{name}, {format_bytes(free)} of {format_bytes(total)} free, {build}")
    if not (torch.version.cuda or torch.version.hip):
        return Finding("GPU", "none: this PyTorch is built for the CPU only", "pip install --force-reinstall torch")
    return Finding("GPU", "PyTorch sees none, though it is built for one", "nvidia-smi   # is the driver up?")


def _driver(root: Path) -> Finding:
    """The kernel's driver, which can be there although PyTorch sees no GPU, and the other way round in a container."""
    for name in DRIVER_FILES:
        path = root / name
        if path.is_file():
            return Finding("GPU driver", path.read_text(encoding="utf-8").partition("\n")[0].strip())
    return Finding("GPU driver", "none is loaded")


def _triton() -> Finding:
    import torch

    found = next((f"{name} {number}" for name in TRITON_PACKAGES if (number := _installed(name))), "")
    if found or not torch.cuda.is_available():
        return Finding("triton", found or "not installed; only GPU runs use it")
    return Finding("triton", "not installed; the loss on a GPU is computed with it", "pip install triton")


def _instructions() -> Finding:
    from slideformer import _core
    from slideformer.optim.threads import cpu_threads

    chosen, available = _core.selected_isa(), ", ".join(_core.available_isas())
    return Finding("CPU AdamW", f"{chosen} of {available}; {cpu_threads()} threads")


def _memory(root: Path) -> Finding:
    from slideformer.plan.machine import free_host_bytes

    free = free_host_bytes(root)
    return Finding("host memory", f"{format_bytes(free)} free, states of {free / 12 / 1e9:.1f}B parameters")


def _pinned(soft: int, hard: int) -> Finding:
    if soft == resource.RLIM_INFINITY:
        return Finding("locked memory limit", "none")
    # CUDA's driver pins without asking this limit; others, and some containers, do ask.
    command = "ulimit -l unlimited" if hard == resource.RLIM_INFINITY else "docker run --ulimit memlock=-1 ..."
    return Finding("locked memory limit", f"{format_bytes(soft)} (if pinning host memory fails: {command})")


def _rates() -> Finding:
    """Not a fault where it is missing: plans then have no seconds."""
    from slideformer.plan.rates import cached_rates

    if (rates := cached_rates()) is None:
        return Finding("rates", "not measured, so plans give no seconds (slideformer probe)")
    adamw = rates.host.adamw_parameters / 1e9
    return Finding("rates", f"measured {rates.measured}: AdamW {adamw:.3g} Gparam/s (again: slideformer probe --fresh)")


def _huge_pages(root: Path) -> Finding:
    path = root / "sys/kernel/mm/transparent_hugepage/enabled"
    if not path.is_file():
        return Finding("huge pages", "this kernel has no transparent huge pages")
    mode = path.read_text(encoding="ascii").partition("[")[2].partition("]")[0]
    remedy = f"echo madvise | sudo tee {path}" if mode == "never" else ""
    return Finding("huge pages", mode, remedy)
