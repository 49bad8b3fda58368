"""The baseline: everything on the GPU, Liger kernels, full recomputation, fused AdamW over an fp32 master.

The other baselines train the same model, built here.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM

from slideformer.kernels.attention import preferred_attention

GROUP_ELEMENTS = 500_000_000  # gradients cast to fp32 at a time
MASTER = "fp32 on the GPU, bf16 weights"

Step = Callable[[Tensor, int], Tensor]


def build(config: Any, device: torch.device, recompute: bool = True) -> Step:
    """A function that takes token ids [b, t] and a number of micro-batches, trains one step and returns the loss."""
    model = random_model(config, device, torch.bfloat16)
    if recompute:
        recompute_blocks(model)
    groups = _groups(list(model.parameters()))
    state = [[_fp32(group, 1.0), _fp32(group, 0.0), _fp32(group, 0.0)] for group in groups]
    steps = [[torch.zeros((), device=device) for _ in group] for group in groups]

    def step(ids: Tensor, micro_batches: int = 1) -> Tensor:
        total = backward(model, ids, micro_batches)
        for group, (master, exp_avg, exp_avg_sq), counts in zip(groups, state, steps, strict=True):
            gradients = [p.grad.float() for p in group if p.grad is not None]
            torch._foreach_add_(counts, 1)  # pyright: ignore[reportPrivateImportUsage]
            torch._fused_adamw_(  # pyright: ignore[reportPrivateImportUsage]
                master, gradients, exp_avg, exp_avg_sq, [], counts, lr=1e-5, beta1=0.9, beta2=0.999,
                weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False,
            )  # fmt: skip
            torch._foreach_copy_([p.detach() for p in group], master)  # pyright: ignore[reportPrivateImportUsage]
            for p in group:
                p.grad = None
        return total

    return step


def random_model(config: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """The model with random weights, and on a GPU with Liger's kernels, its linear cross-entropy among them."""
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").train()
    if device.type == "cuda":
        from liger_kernel.transformers.monkey_patch import (  # pyright: ignore[reportMissingImports]
            _apply_liger_kernel_to_instance,
        )

        _apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=True)
    return model


def recompute_blocks(model: Any) -> None:
    """Every block keeps only its input."""
    for block in model.model.layers:
        block.forward = _recomputed(block.forward)


def backward(model: nn.Module, ids: Tensor, micro_batches: int) -> Tensor:
    """Gradients of the mean loss of all micro-batches, added up; returns that loss."""
    total = torch.zeros((), device=ids.device)
    with preferred_attention(ids.device):
        for part in ids.chunk(micro_batches):
            loss = model(input_ids=part, labels=part, use_cache=False).loss / micro_batches
            loss.backward()
            total += loss.detach()
    return total


def _fp32(group: list[Tensor], scale: float) -> list[Tensor]:
    """fp32 copies of a group times `scale`: the master (1) or moments (0)."""
    return [p.detach().float() * scale for p in group]


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _groups(parameters: list[Tensor]) -> list[list[Tensor]]:
    groups: list[list[Tensor]] = [[]]
    for parameter in parameters:
        if sum(p.numel() for p in groups[-1]) > GROUP_ELEMENTS:
            groups.append([])
        groups[-1].append(parameter)
    return groups
