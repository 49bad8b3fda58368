"""Planning for a machine that is not here: its memory, its type of computation, and what that would need."""

from dataclasses import replace
from pathlib import Path

import torch

from slideformer.engine.pretrained import DTYPES
from slideformer.errors import ConfigError
from slideformer.models.architecture import Decoder
from slideformer.plan.footprint import Work
from slideformer.plan.machine import HOST_MARGIN, Machine
from slideformer.plan.rates import MachineRates
from slideformer.units import GIB

GPU_PROCESS_BYTES = int(1.5 * GIB)  # Python, PyTorch and CUDA: host_peak_gib of resident runs in benchmarks/results


def dtype_there(rates: MachineRates, device: str, compute_dtype: str) -> torch.dtype:
    """The type that layers would compute in, for the settings `device` and `compute_dtype`.

    Raises:
        ConfigError: the machine is not one of that device.
    """
    if device != "auto" and (device == "cuda") != rates.has_gpu:
        has = "a GPU, whose rates these are" if rates.has_gpu else "no GPU"
        raise ConfigError(f"device: {device}, but {rates.name} has {has}", hint="set device: auto")
    if compute_dtype == "auto":
        return torch.bfloat16 if rates.has_gpu else torch.float32
    return DTYPES[compute_dtype]


def memory_there(rates: MachineRates) -> Machine:
    """What was free there, less the margin that is left here, too."""
    return Machine(rates.name, int(rates.memory.host_free_bytes * (1 - HOST_MARGIN)), rates.memory.device_free_bytes)


def disk_there(directory: Path | None, budget_bytes: int | None) -> int | None:
    """What may be taken of the disk there: the budget, whatever is free here; None without one.

    Raises:
        ConfigError: there is a directory and no budget.
    """
    if directory is not None and budget_bytes is None:
        raise ConfigError(
            "budget.offload_dir: how much room a disk has that is not here is not known", "set budget.disk"
        )
    return budget_bytes


def work_there(work: Work, decoder: Decoder, dtype: torch.dtype) -> Work:
    """What computation would need of a GPU's memory, from what autograd saves on the CPU.

    The loss is taken to need what its GPU kernel needs, whose gradient takes the logits' place. Libraries' workspaces,
    about 0.1 GiB, are not in it.
    """
    return replace(work, logit_bytes=decoder.vocabulary * dtype.itemsize)
