"""What a run measures, as records, and the host's memory."""

import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StepStats:
    """One optimizer step, counted from 1.

    `loss` is the mean over the step's trained tokens; `grad_norm` is the norm before clipping; `tokens` leaves
    padding out; `seconds` is wall time from the end of the step before; peaks are bytes since the run began.
    `epoch` counts passes over the data, with the part of the present one. The last four say how long each of the
    step's workers was busy, in seconds: the compute lane, the copies in both directions, the CPU's AdamW. They overlap.
    0 where an older run did not measure them. `non_finite` names layers whose gradient was not finite,
    so that the step was left out (`on_non_finite: skip`); empty in every other step.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    trained_tokens: int
    seconds: float
    tokens_per_second: float
    gpu_peak_bytes: int
    host_peak_bytes: int
    epoch: float = 0.0
    compute_seconds: float = 0.0
    h2d_seconds: float = 0.0
    d2h_seconds: float = 0.0
    optimizer_seconds: float = 0.0
    non_finite: str = ""


@dataclass(frozen=True)
class EvalStats:
    """Held-out data after `step` steps; 0 is before training.

    `loss` is the mean negative log-likelihood of the `tokens` trained ones among them, `perplexity` its exponential.
    """

    step: int
    loss: float
    perplexity: float
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Sample:
    """The model's answer to one of the sample prompts after `step` steps; 0 is before training."""

    step: int
    prompt: str
    answer: str


@dataclass(frozen=True)
class RunRecord:
    """What a run is, known before its first step.

    Attributes:
        started: UTC, ISO 8601.
        config: every setting.
        versions: of the packages that compute.
        machine: `name`, `host_bytes` and `device_bytes` (null on a CPU) that were free.
        plan: `Plan.as_json()`.
        data: `sources`, their `reports`, and `lengths`: a histogram of the records' tokens (`edges`, `counts`).
        model: `architecture`, `parameters`, `trained_parameters`.
        steps: optimizer steps of the whole run.
    """

    started: str
    config: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, Any]
    plan: dict[str, Any]
    data: dict[str, Any]
    model: dict[str, Any]
    steps: int
    format: int = 1


def host_peak_bytes() -> int:
    """The most resident memory this process has had, in bytes."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts it in KiB
