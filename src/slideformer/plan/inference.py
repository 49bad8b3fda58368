"""The plan of an engine that only generates: how many prompts at once, and how deep a window."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from slideformer.errors import DoesNotFit
from slideformer.memory.feed import TokenFeed
from slideformer.memory.weights import LayerWeights
from slideformer.memory.window import LayerWindow
from slideformer.plan.footprint import LOGIT_BYTES, KeyValueSizes, ModelSizes
from slideformer.plan.planner import TARGET_TOKENS
from slideformer.plan.remedies import gpu_budget_for
from slideformer.plan.sizes import InferenceSizes
from slideformer.units import format_bytes


@dataclass(frozen=True)
class InferenceWork:
    """Device memory that computation needs beside the named buffers.

    Attributes:
        block_bytes: the hungriest block over one sequence of the longest pass.
        block_fixed_bytes: what does not grow with the sequences.
        inputs_bytes: masks and rotary tables of one sequence.
        workspace_bytes: what libraries keep once they have been used.
        cache: None where every pass starts from the first token.
    """

    block_bytes: int
    block_fixed_bytes: int
    inputs_bytes: int
    workspace_bytes: int
    cache: KeyValueSizes | None


@dataclass(frozen=True)
class InferencePlan:
    """Chosen sizes, and the bytes they need by name; a budget of None is no limit."""

    sizes: InferenceSizes
    blocks: int
    host: dict[str, int]
    device: dict[str, int]
    host_budget_bytes: int
    device_budget_bytes: int | None

    @property
    def fits(self) -> bool:
        on_device = self.device_budget_bytes is None or sum(self.device.values()) <= self.device_budget_bytes
        return on_device and sum(self.host.values()) <= self.host_budget_bytes

    def __str__(self) -> str:
        depth = self.sizes.window_depth
        window = "all blocks stay" if depth == self.blocks else f"{depth} of {self.blocks} blocks in the window"
        device = "" if self.device_budget_bytes is None else f", GPU {format_bytes(sum(self.device.values()))}"
        host = f"host {format_bytes(sum(self.host.values()))}"
        plural = "s" if self.sizes.sequences > 1 else ""
        return f"plan: {self.sizes.sequences} prompt{plural} at once, {window}; {host}{device}"


def plan_inference(
    model: ModelSizes,
    work: InferenceWork,
    prompts: int,
    pass_length: int,
    tokens: int,
    dtype: torch.dtype,
    host_budget_bytes: int,
    device_budget_bytes: int | None,
    process_bytes: int,
) -> InferencePlan:
    """As many prompts at once as fit, since they share the weights' way in; then as deep a window.

    Args:
        pass_length: tokens of the longest sequence that enters in one pass.
        tokens: of the longest sequence at its end.
        device_budget_bytes: None where layers compute in host memory; what they need is then counted there.
        process_bytes: host memory of the process before the engine is built.

    Raises:
        DoesNotFit: not even one prompt with the smallest window does.
    """
    plan = None
    for sizes in _candidates(len(model.blocks), prompts, pass_length):
        host = {"process": process_bytes, **_host_bytes(model, sizes, dtype)}
        device = _device_bytes(model, work, sizes, tokens, dtype)
        if device_budget_bytes is None:
            host["computation"] = sum(device.values())
        plan = InferencePlan(sizes, len(model.blocks), host, device, host_budget_bytes, device_budget_bytes)
        if plan.fits:
            return plan
    assert plan is not None
    raise _does_not_fit(plan)


def _candidates(blocks: int, prompts: int, pass_length: int) -> Iterator[InferenceSizes]:
    """From the most to the least preferred."""
    together = prompts
    while True:
        group = max(1, min(together, TARGET_TOKENS // pass_length))
        for depth in range(blocks, min(2, blocks) - 1, -1):
            yield InferenceSizes(depth, group, -(-together // group), pass_length)
        if together == 1:
            return
        together = -(-together // 2)


def _host_bytes(model: ModelSizes, sizes: InferenceSizes, dtype: torch.dtype) -> dict[str, int]:
    return {
        "weights": LayerWeights.bytes_needed(model.layouts.values(), dtype),
        "embedding rows": min(sizes.pass_tokens, model.vocabulary) * model.embedding_width * dtype.itemsize,
        "token ids": TokenFeed.bytes_needed(sizes.pass_indices),
    }


def _device_bytes(
    model: ModelSizes, work: InferenceWork, sizes: InferenceSizes, tokens: int, dtype: torch.dtype
) -> dict[str, int]:
    size = dtype.itemsize
    return {
        "weights": LayerWindow.bytes_needed(model.block_layouts, sizes.window_depth, dtype)
        + (model.layouts[model.shell].numel + model.layouts[model.head].numel) * size
        + model.buffer_bytes,
        "keys and values": work.cache.bytes_needed(sizes.sequences, tokens) if work.cache else 0,
        "embedding rows": min(sizes.pass_tokens, model.vocabulary) * model.embedding_width * size,
        "inputs": work.inputs_bytes * sizes.sequences + TokenFeed.bytes_needed(sizes.pass_indices),
        "hidden states": 2 * sizes.pass_tokens * model.hidden * size,
        "block": work.block_fixed_bytes + work.block_bytes * sizes.group_size,
        "logits": sizes.sequences * model.vocabulary * LOGIT_BYTES,
        "libraries": work.workspace_bytes,
    }


def _does_not_fit(plan: InferencePlan) -> DoesNotFit:
    device, budget = sum(plan.device.values()), plan.device_budget_bytes
    if budget is not None and device > budget:
        return DoesNotFit(
            f"generation needs {format_bytes(device)} of GPU memory, and its budget is {format_bytes(budget)}",
            f"shorten the prompt or max_new_tokens, or give budget.gpu at least {gpu_budget_for(device)}",
        )
    return DoesNotFit(
        f"the model needs {format_bytes(sum(plan.host.values()))} of host memory, and "
        f"{format_bytes(plan.host_budget_bytes)} are free",
        "2 bytes a parameter have to fit; close what else holds memory",
    )
