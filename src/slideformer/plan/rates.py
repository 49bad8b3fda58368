"""How fast a machine is and what it allows: a record that `slideformer probe` measures, and its JSON."""

import hashlib
import json
import os
import platform
import socket
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from slideformer.errors import ConfigError
from slideformer.plan.limits import MemoryLimits

FORMAT = 3  # of the file; 2: calls are those of steps, with all that comes with them; 3: attention over long rows
SHORT_ROW, LONG_ROW = 1024, 16384  # tokens of the rows with which attention is measured


@dataclass(frozen=True)
class ComputeRates:
    """What layers compute with, per second.

    Attributes:
        matmul_flops: sustained multiply-adds, two operations each, by dtype ("bf16", "fp32").
        attention_flops: causal attention over rows of 1,024 tokens, forward and backward, all pairs counted, by dtype.
        memory_bytes: read and written by an elementwise operation.
        call_seconds: that the host spends on calling one operator of a block, its share of autograd, modules and saved
            tensors included.
        long_attention_flops: as `attention_flops`, over rows of 16,384 tokens; empty: the same.
    """

    matmul_flops: dict[str, float]
    attention_flops: dict[str, float]
    memory_bytes: float
    call_seconds: float = 0.0
    long_attention_flops: dict[str, float] = field(default_factory=dict)

    def attention_rate(self, dtype_name: str, tokens: float) -> float:
        """Per second over rows of so many tokens, all pairs counted.

        Half of the pairs are masked and cost nothing but in tiles that are masked in part, whose share is as
        1 / tokens: so is what a pair takes beyond its least.
        """
        short = 1 / self.attention_flops[dtype_name]
        long = 1 / self.long_attention_flops.get(dtype_name, self.attention_flops[dtype_name])
        share = (1 / tokens - 1 / LONG_ROW) / (1 / SHORT_ROW - 1 / LONG_ROW)
        return 1 / (long + max(0.0, share) * (short - long))


@dataclass(frozen=True)
class LinkRates:
    """Copies between pinned host memory and the GPU, in bytes per second: one direction alone, and both at once."""

    h2d_bytes: float
    d2h_bytes: float
    h2d_together_bytes: float
    d2h_together_bytes: float


@dataclass(frozen=True)
class HostRates:
    """The CPU and its memory.

    Attributes:
        copy_bytes, triad_bytes: read and written per second, by a copy and by a = b + s * c.
        adamw_parameters: updated per second, alone.
        adamw_parameters_under_copies: the same while the link copies in both directions; None without a GPU.
    """

    copy_bytes: float
    triad_bytes: float
    adamw_parameters: float
    adamw_parameters_under_copies: float | None = None


@dataclass(frozen=True)
class DiskRates:
    """The file system of a directory, in bytes per second, the page cache kept out of it where it can be."""

    directory: str
    read_bytes: float
    write_bytes: float


@dataclass(frozen=True)
class MachineRates:
    """One machine.

    Attributes:
        name: of the GPU, or of the CPU where there is no GPU.
        source: what the figures come from: `slideformer probe`, or where they were read.
        measured: when, ISO 8601; "" where nobody measured all of them at once.
        compute: of the GPU, or of the CPU where there is none.
        link: None without a GPU.
        disk: None where it was not measured.
    """

    name: str
    source: str
    measured: str
    compute: ComputeRates
    host: HostRates
    memory: MemoryLimits
    link: LinkRates | None = None
    disk: DiskRates | None = None
    format: int = FORMAT

    @property
    def has_gpu(self) -> bool:
        return self.link is not None

    def as_json(self) -> dict[str, Any]:
        """Plain values; `read_machine` reads them back."""
        return asdict(self)


def read_machine(path: Path) -> MachineRates:
    """The machine in a JSON file, as `slideformer probe --json` prints it.

    Raises:
        ConfigError: there is no such file, or it is not such a record.
    """
    try:
        return TypeAdapter(MachineRates).validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}", hint="write one with `slideformer probe --json > machine.json`"
        ) from None
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"])) or "the file"
        raise ConfigError(
            f"{path} is not a machine: {place}: {problem['msg']}", hint="write it with `slideformer probe --json`"
        ) from None


def cache_file() -> Path:
    """Where this machine's rates are kept; another GPU, driver, CPU or PyTorch is another file."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    digest = hashlib.sha256("\n".join(_identity()).encode()).hexdigest()
    return Path(base) / "slideformer" / f"machine-{digest[:16]}.json"


def cached_rates() -> MachineRates | None:
    """What `slideformer probe` measured here; None where it did not, or with another version of the record."""
    try:
        rates = read_machine(cache_file())
    except ConfigError:
        return None
    return rates if rates.format == FORMAT else None


def store_rates(rates: MachineRates) -> Path:
    """Keep the rates for later plans; returns the file."""
    path = cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(rates.as_json(), indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)
    return path


def cpu_name(root: Path = Path("/")) -> str:
    """The CPU's name, as the kernel tells it."""
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _identity() -> list[str]:
    """What rates depend on. The CPUs of this process are part of it: a container may give it fewer."""
    gpu, driver = "", ""
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_name()
        version = Path("/proc/driver/nvidia/version")
        driver = version.read_text(encoding="utf-8").partition("\n")[0] if version.is_file() else ""
    cpus = str(sorted(os.sched_getaffinity(0)))
    return [socket.gethostname(), cpu_name(), cpus, gpu, driver, torch.__version__, str(FORMAT)]
