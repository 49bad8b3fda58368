"""What is asked for, and what was decided."""

from dataclasses import asdict, dataclass, field
from typing import Any

from slideformer.plan.footprint import ModelSizes
from slideformer.plan.pins import Pins
from slideformer.plan.sizes import OptimizerState, Sizes
from slideformer.plan.timing import StepTiming


@dataclass(frozen=True)
class Workload:
    """What a step consists of; pinned choices are not None.

    Attributes:
        batch_size: sequences a step.
        max_length: tokens of the longest.
        clipping: whether gradients wait for their norm.
        recompute_all: keep nothing of a block's forward for its backward.
        optimizer_state: what the optimizer's moments are stored in.
        resident: blocks whose state is in the device's memory.
        kept: blocks whose forward is kept whole.
        saves_in_background: spend host memory that is left on copies of states, to write checkpoints from.
        head_shards: as in `Sizes`; the planner doubles it where nothing fits.
        pins: further sizes that are given.
    """

    batch_size: int
    max_length: int
    clipping: bool
    micro_batch_size: int | None = None
    window_depth: int | None = None
    recompute_all: bool = False
    optimizer_state: OptimizerState = "fp32"
    resident: int | None = None
    kept: int | None = None
    saves_in_background: bool = False
    head_shards: int = 1
    pins: Pins = field(default_factory=Pins)


@dataclass(frozen=True)
class Plan:
    """Chosen sizes, and the bytes they need.

    Attributes:
        host: bytes of host memory by name.
        device: bytes of device memory by phase and name.
        disk: bytes in `budget.offload_dir` by name.
        host_budget_bytes, device_budget_bytes: None is no limit.
        disk_budget_bytes: None: there is no disk tier.
        timing: of a step; None where the machine's rates are not known.
    """

    sizes: Sizes
    model: ModelSizes
    host: dict[str, int]
    device: dict[str, dict[str, int]]
    disk: dict[str, int]
    host_budget_bytes: int
    device_budget_bytes: int | None
    disk_budget_bytes: int | None
    timing: StepTiming | None = None

    @property
    def disk_peak_bytes(self) -> int:
        return sum(self.disk.values())

    @property
    def host_peak_bytes(self) -> int:
        return sum(self.host.values())

    @property
    def device_peak_bytes(self) -> int:
        return max(sum(phase.values()) for phase in self.device.values())

    @property
    def fits_device(self) -> bool:
        return self.device_budget_bytes is None or self.device_peak_bytes <= self.device_budget_bytes

    @property
    def fits_host(self) -> bool:
        return self.host_peak_bytes <= self.host_budget_bytes

    @property
    def fits_disk(self) -> bool:
        return self.disk_peak_bytes <= (self.disk_budget_bytes or 0)

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {
            "parameters": self.model.parameters,
            "sizes": asdict(self.sizes),
            "host_bytes": {**self.host, "total": self.host_peak_bytes, "budget": self.host_budget_bytes},
            "device_bytes": {
                **self.device, "peak": self.device_peak_bytes, "budget": self.device_budget_bytes,
            },
            "disk_bytes": {**self.disk, "total": self.disk_peak_bytes, "budget": self.disk_budget_bytes},
            "timing": None if self.timing is None else self.timing.as_json(),
        }  # fmt: skip
