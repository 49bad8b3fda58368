"""What one measurement is asked to do: plain values, so that a fresh process can be told."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from slideformer.plan.sizes import OptimizerState


@dataclass(frozen=True)
class Case:
    """A training step to measure, over random tokens without padding.

    Attributes:
        model: a name of `SHAPES`, or a model directory or hub id, of which only the configuration is read.
        sequences, length: of a step.
        blocks: train only the first so many of the model, each at its full width; None: all.
        steps, warm_up: that count, and that are done before.
        gpu_budget_bytes, host_budget_bytes, disk_budget_bytes: None: what is free.
        micro_batch_size, window_depth, threads: None: chosen.
        resident, kept: blocks whose state stays on the GPU, and of which nothing is recomputed; None: chosen.
        resident_ends, kept_outputs, host_outputs, host_boundaries, disk_blocks, disk_boundaries,
            disk_weight_blocks, gradient_slots, head_shards: as in `Pins`.
        offload_dir: where states may go that host memory does not hold; None: nowhere.
        rates: a machine's, as `slideformer probe --json` prints them; None: this one's, if it was probed.
        matmul_flops: of this machine per second, sustained; None: measured first.
    """

    model: str
    sequences: int
    length: int
    steps: int = 4
    warm_up: int = 2
    gpu_budget_bytes: int | None = None
    host_budget_bytes: int | None = None
    clipping: bool = False
    micro_batch_size: int | None = None
    window_depth: int | None = None
    threads: int | None = None
    optimizer_state: OptimizerState = "fp32"
    device: Literal["auto", "cuda", "cpu"] = "auto"
    resident: int | None = None
    kept: int | None = None
    resident_ends: bool | None = None
    kept_outputs: int | None = None
    host_outputs: int | Literal["auto"] | None = None
    host_boundaries: int | None = None
    disk_blocks: int | None = None
    disk_boundaries: int | None = None
    disk_weight_blocks: int | None = None
    gradient_slots: int | None = None
    head_shards: int | None = None
    offload_dir: str | None = None
    disk_budget_bytes: int | None = None
    rates: dict[str, Any] | None = None
    matmul_flops: float | None = None
    blocks: int | None = None

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.sequences * self.length

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
