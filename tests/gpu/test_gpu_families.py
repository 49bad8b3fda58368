"""Kinds of models on a GPU in bf16: losses as resident mixed precision has them, and no bit decided by the window.

torch's deterministic kernels are asked for, so that what differs would be the engine's doing.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from parity.catalog import config_of
from tiny_runs import States, batch_at, differences, make_records, mean_loss, parameter_groups, states_of

from slideformer.engine.engine import Engine
from slideformer.models import tiny, tiny_model
from slideformer.models.architecture import Decoder
from slideformer.optim.adamw import AdamWStep
from slideformer.plan.sizes import Sizes

DEVICE = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]

# One for each kind: dense, tied, soft-caps and windows, learned positions, ALiBi, parallel blocks, experts, sinks with
# experts, latent attention with shared experts, linear attention, chunked attention, state space.
TYPES = [
    "llama", "qwen3", "gemma2", "gpt2", "bloom", "gpt_neox", "mixtral", "gpt_oss", "deepseek_v3", "qwen3_next",
    "llama4_text", "falcon_h1",
]  # fmt: skip
STEPS, LENGTH = 10, 128
RECORDS = make_records(20, lengths=(LENGTH // 2, LENGTH))
HYPER = AdamWStep(learning_rate=5e-4, beta1=0.9, beta2=0.99, epsilon=1e-6, weight_decay=0.1, step=1)
SIZES = Sizes(2, 2, 2, LENGTH, gradient_slots=3, host_boundaries=1, head_chunk=64, kept=1)


@pytest.fixture(autouse=True)
def deterministic_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("model_type", TYPES)
def test_losses_are_those_of_resident_training_whatever_the_window(
    monkeypatch: pytest.MonkeyPatch, model_type: str, record_property: Any
):
    monkeypatch.setattr(tiny, "HIDDEN", 256)  # heads of 64: what bf16 attention kernels are made for
    config = tiny_model.without_dropout(tiny.shrink(config_of(model_type)))
    model = tiny_model.build_tiny(config)
    decoder = Decoder(config, torch.device(DEVICE))
    losses, states = sliding(decoder, model, SIZES)
    other_losses, other_states = sliding(decoder, model, replace(SIZES, window_depth=3, kept=0, kept_outputs=2))
    resident = resident_losses(model, decoder)
    worst = max(abs(a - b) / b for a, b in zip(losses, resident, strict=True))
    record_property("largest relative difference of a loss", worst)
    print(f"{model_type}: losses {losses[0]:.4f} -> {losses[-1]:.4f}, at most {worst:.1e} from resident")
    assert worst < 2e-3
    assert losses == other_losses and differences(states, other_states) == []


def sliding(decoder: Decoder, model: Any, sizes: Sizes) -> tuple[list[float], States]:
    start = dict(model.named_parameters())
    with Engine(decoder, sizes, torch.bfloat16) as engine:
        engine.load((u, {n: start[n].detach() for n in names}) for u, names in engine.parameter_groups().items())
        results = [engine.train_step(batch_at(RECORDS, 4, k), replace(HYPER, step=k + 1)).loss for k in range(STEPS)]
        return results, states_of(engine)


def resident_losses(model: Any, decoder: Decoder) -> list[float]:
    """The whole model in bf16 on the GPU, fp32 masters beside it, two micro-batches a step, plain AdamW."""
    masters = {name: value.detach().float().to(DEVICE).clone() for name, value in model.named_parameters()}
    name_of = {id(value): name for name, value in model.named_parameters()}
    groups = [
        {**group, "params": [masters[name_of[id(value)]] for value in group["params"]]}
        for group in parameter_groups(model, HYPER.weight_decay)
    ]
    optimizer = torch.optim.AdamW(groups, HYPER.learning_rate, (HYPER.beta1, HYPER.beta2), HYPER.epsilon)
    on_device = deepcopy(model).to(DEVICE, torch.bfloat16).train()
    losses = []
    for k in range(STEPS):
        with torch.no_grad():
            for name, parameter in on_device.named_parameters():
                parameter.copy_(masters[name])
        losses.append(_resident_step(on_device, masters, k))
        optimizer.step()
    return losses


def _resident_step(model: Any, masters: dict[str, torch.Tensor], k: int) -> float:
    """Gradients of one step in the masters, summed over micro-batches in fp32; the loss."""
    batch, total = batch_at(RECORDS, 4, k), 0.0
    for master in masters.values():
        master.grad = None
    for micro_batch in batch.split(2):
        on_device = replace(
            micro_batch, input_ids=micro_batch.input_ids.to(DEVICE), targets=micro_batch.targets.to(DEVICE)
        )
        share = mean_loss(model, on_device) * (micro_batch.trained_tokens / batch.trained_tokens)
        share.backward()
        total += float(share.detach())
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                so_far = masters[name].grad
                masters[name].grad = parameter.grad.float() if so_far is None else so_far + parameter.grad
                parameter.grad = None
    return total
