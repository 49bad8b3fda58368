"""Writes into each of examples/*.yaml the plan of its run, for a GPU that need not be here.

    python benchmarks/example_plans.py

The plan is the planner's own. What computation needs of the GPU is estimated, where a run would measure it: what
autograd saves of a block is counted on the CPU, and the loss is taken to need what its GPU kernel needs. Libraries'
workspaces, about 0.1 GiB, are not in it. tests/test_examples.py holds it to the plans that an H200 measured.
"""

from pathlib import Path
from textwrap import wrap

import torch
from shapes import SHAPES

from slideformer.config import Config, load_config
from slideformer.elsewhere import GPU_PROCESS_BYTES, work_there
from slideformer.engine.measure import measure_work, model_sizes
from slideformer.models.architecture import Decoder
from slideformer.plan.machine import Machine
from slideformer.plan.plan import Plan, Workload
from slideformer.plan.planner import make_plan
from slideformer.plan.table import render

EXAMPLES = Path(__file__).parent.parent / "examples"
SHAPE_OF_MODEL = {
    "Qwen/Qwen3-4B": "qwen3-4b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "Qwen/Qwen3-14B": "qwen3-14b",
    "meta-llama/Llama-3.3-70B-Instruct": "llama-3.3-70b",
    "mistralai/Mistral-Large-Instruct-2411": "mistral-large-123b",
}
START, END = "# --- plan ", "# --- end of plan ---\n"
TITLE = START + "(python benchmarks/example_plans.py; the GPU's figures are estimated without one) ---\n"


def main() -> None:
    for path in sorted(EXAMPLES.glob("*.yaml")):
        config = load_config(path)
        if config.model in SHAPE_OF_MODEL:
            path.write_text(with_plan(path.read_text(encoding="utf-8"), plan_of(config)), encoding="utf-8")
            print(f"{path}\n{render(plan_of(config))}\n")


def plan_of(config: Config) -> Plan:
    """The plan of an example, which gives its budgets and fills its records up to `max_length`."""
    workload = Workload(
        config.batch_size,
        config.max_length,
        config.max_grad_norm is not None,
        config.micro_batch_size,
        config.window_depth,
        recompute_all=bool(config.gradient_checkpointing),
    )
    budget = config.budget
    return estimate(SHAPE_OF_MODEL[config.model], workload, budget.gpu_bytes, budget.host_bytes, budget.disk_bytes)


def estimate(
    shape: str, workload: Workload, gpu_bytes: int | None, host_bytes: int | None, disk_bytes: int | None = None
) -> Plan:
    """The plan for one shape in bf16 under its budgets."""
    assert gpu_bytes and host_bytes
    decoder = Decoder(SHAPES[shape](), torch.device("cpu"), "sdpa")
    work = work_there(measure_work(decoder, workload.max_length, torch.bfloat16), decoder, torch.bfloat16)
    device_bytes = Machine("", host_bytes, gpu_bytes).allocatable_bytes(gpu_bytes)
    return make_plan(
        model_sizes(decoder), work, workload, torch.bfloat16, host_bytes, device_bytes, GPU_PROCESS_BYTES, disk_bytes
    )  # fmt: skip


def with_plan(text: str, plan: Plan) -> str:
    """`text` with the plan in its comments, in place of the one there or behind the first block of comments."""
    lines = [part for line in render(plan).splitlines() for part in wrap(line, 118, drop_whitespace=False) or [""]]
    block = TITLE + "".join(f"# {line}".rstrip() + "\n" for line in lines) + END
    if START in text:
        before, _, rest = text.partition(START)
        return before + block + rest.partition(END)[2]
    lines = text.splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "".join([*lines[:first], block, *lines[first:]])


if __name__ == "__main__":
    main()
