"""Baseline: PyTorch's FSDP2 with CPU offload, in one process.

An fp32 master and moments are in pinned host memory; the GPU computes in bf16; torch's fused AdamW runs on the CPU.
"""

import os
from typing import Any

import torch
import torch.distributed as dist
from offload_deepspeed import ONE_PROCESS
from resident import Step, backward, random_model, recompute_blocks
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

MASTER = "fp32 in host memory, cast to bf16 on the GPU"


def build(config: Any, device: torch.device) -> Step:
    """A function that takes token ids [b, t] and a number of micro-batches, trains one step and returns the loss."""
    os.environ.update(ONE_PROCESS)
    on_gpu = device.type == "cuda"
    dist.init_process_group("nccl" if on_gpu else "gloo")
    model = random_model(config, device, torch.float32)  # `fully_shard` brings it to host memory, block by block
    recompute_blocks(model)
    settings = {
        "mesh": init_device_mesh(device.type, (1,)),
        "mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16),
        "offload_policy": CPUOffloadPolicy(pin_memory=on_gpu),
    }
    for block in model.model.layers:
        fully_shard(block, **settings)
    fully_shard(model, **settings)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-5, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True
    )  # fmt: skip

    def step(ids: Tensor, micro_batches: int) -> Tensor:
        total = backward(model, ids, micro_batches)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step
