"""The timing of made-up plans on a made-up machine."""

from typing import Any

import torch
from made_up_machines import machine
from made_up_plans import BLOCKS, VOCABULARY, WIDTH, plan

from slideformer.plan.operations import BlockOperations, ModelOperations, Operations, full_step
from slideformer.plan.timing import StepTiming, predict

FORWARD = Operations(matmul_flops=24 * WIDTH**2, attention_flops=4 * WIDTH, memory_bytes=40 * WIDTH)
BACKWARD = Operations(matmul_flops=48 * WIDTH**2, attention_flops=10 * WIDTH, memory_bytes=80 * WIDTH)
MODEL = ModelOperations([BlockOperations(FORWARD, BACKWARD)] * BLOCKS, VOCABULARY * WIDTH)


def timing(sequences: int = 32, gpu: bool = True, steps: int = 100, **workload: Any) -> StepTiming:
    chosen = plan(batch_size=sequences, **workload)
    clipping = workload.get("clipping", True)
    tokens, rates = full_step(sequences, 1024), machine(gpu)
    return predict(chosen.model, MODEL, chosen.sizes, tokens, rates, torch.bfloat16, clipping, steps)
