"""Plans of a made-up model, about the shape of a small Llama, for made-up budgets."""

from typing import Any

import torch

from slideformer.layout import FlatLayout
from slideformer.plan.footprint import ModelSizes, Work
from slideformer.plan.pace import Pace
from slideformer.plan.plan import Plan, Workload
from slideformer.plan.planner import make_plan
from slideformer.units import MIB, parse_bytes

BLOCKS, WIDTH, VOCABULARY = 12, 1024, 32000


def model_of(blocks: int = BLOCKS, width: int = WIDTH, vocabulary: int = VOCABULARY) -> ModelSizes:
    """Blocks of 12 width^2 parameters, and a tied embedding."""
    names = [f"layers.{i}" for i in range(blocks)]
    block = FlatLayout({"attention": (4 * width, width), "mlp": (8 * width, width)})
    layouts = {
        "embedding": FlatLayout({"w": (vocabulary, width)}), "shell": FlatLayout({"norm": (width,)}),
        **dict.fromkeys(names, block),
    }  # fmt: skip
    return ModelSizes(layouts, names, "embedding", "shell", "embedding", vocabulary, width, width, buffer_bytes=1000)


def work_of(length: int) -> Work:
    return Work(
        block_bytes=34 * length * WIDTH * 2, block_fixed_bytes=30 * MIB, inputs_bytes=length * 1000,
        logit_bytes=VOCABULARY * 6, workspace_bytes=64 * MIB, kept_bytes=30 * length * WIDTH * 2,
    )  # fmt: skip


def plan(
    host: str = "64GiB", gpu: str | None = "24GiB", disk: str | None = None, pace: Pace | None = None, **workload: Any
) -> Plan:
    """Nothing is resident unless `resident` says so."""
    load = Workload(**{"batch_size": 32, "max_length": 1024, "clipping": True, "resident": 0, **workload})
    device = None if gpu is None else parse_bytes(gpu)
    return make_plan(
        model_of(),
        work_of(load.max_length),
        load,
        torch.bfloat16,
        parse_bytes(host),
        device,
        process_bytes=500 * MIB,
        disk_budget_bytes=None if disk is None else parse_bytes(disk),
        pace=pace,
    )
