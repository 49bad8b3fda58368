"""Baselines: DeepSpeed's ZeRO-3 with parameters and optimizer in pinned host memory; ZeRO-2 with the optimizer there.

Settings are DeepSpeed's own but for those written here; one process without its launcher. Its AdamW for the CPU is
compiled when it is first used: call `compile_optimizer` before a case is timed.
"""

import os
from typing import Any

import torch
from resident import Step, random_model
from torch import Tensor

from slideformer.kernels.attention import preferred_attention

MASTER = "fp32 in host memory, bf16 weights"
ONE_PROCESS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533"}


def build(config: Any, device: torch.device, stage: int, sequences: int, micro_batches: int) -> Step:
    """A function that takes token ids [b, t] and the number of micro-batches, trains one step and returns the loss."""
    os.environ.update(ONE_PROCESS)
    import deepspeed  # pyright: ignore[reportMissingImports]

    model = random_model(config, device, torch.bfloat16)
    # Reentrant: the other kind compares shapes of saved weights, which ZeRO-3 takes away in between.
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", verbose=False)
    settings = _settings(stage, sequences // micro_batches, micro_batches, pin=device.type == "cuda")
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=settings)

    def step(ids: Tensor, micro_batches: int) -> Tensor:
        total = torch.zeros((), device=ids.device)
        with preferred_attention(ids.device):
            for part in ids.chunk(micro_batches):
                loss = engine(input_ids=part, labels=part, use_cache=False).loss
                engine.backward(loss)
                engine.step()
                total += loss.detach() / micro_batches
        return total

    return step


def compile_optimizer() -> None:
    """Compile DeepSpeed's AdamW, which is then found by every later process."""
    from deepspeed.ops.op_builder import CPUAdamBuilder  # pyright: ignore[reportMissingImports]

    CPUAdamBuilder().load()


def _settings(stage: int, micro_batch_size: int, micro_batches: int, pin: bool) -> dict[str, Any]:
    on_host = {"device": "cpu", "pin_memory": pin}
    zero: dict[str, Any] = {"stage": stage, "offload_optimizer": on_host, "overlap_comm": True}
    if stage == 3:
        zero["offload_param"] = on_host
    adamw = {"lr": 1e-5, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": micro_batches,
        "bf16": {"enabled": True},
        "gradient_clipping": 0.0,
        "zero_optimization": zero,
        "optimizer": {"type": "AdamW", "params": adamw},
        "steps_per_print": 10**9,
    }
