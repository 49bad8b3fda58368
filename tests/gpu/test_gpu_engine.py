"""The engine on a GPU: the window changes no bit, fp32 agrees with the CPU, bf16 with resident mixed precision."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from tiny_runs import (
    SIZES,
    States,
    Subject,
    batch_at,
    differences,
    hyper_at,
    make_records,
    mean_loss,
    parameter_groups,
    states_of,
    subject,
    tiny_engine,
)

from slideformer.engine.engine import Engine
from slideformer.engine.measure import measure_work, model_sizes
from slideformer.memory.host_outputs import FIXED_BYTES
from slideformer.optim.adamw import AdamWStep
from slideformer.plan.footprint import device_bytes, host_bytes
from slideformer.plan.sizes import Sizes

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(280)]

FAMILIES = ["llama", "qwen3", "gemma2"]
RECORDS = make_records(20, lengths=(16, 48))
BASE = replace(SIZES, max_length=48, gradient_slots=5, head_chunk=64)
BLOCKS, STEPS = 5, 10


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """fp32 matrix products in fp32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@cache
def tiny(family: str, device: str) -> Subject:
    return subject(tiny_model(family, num_hidden_layers=BLOCKS), device)


def run(
    family: str, dtype: torch.dtype, max_norm: float | None = None, sizes: Sizes = BASE
) -> tuple[list[float], States]:
    with tiny_engine(tiny(family, "cuda"), sizes, dtype) as engine:
        losses = train_late(engine, 4, hyper_at(1), max_norm)
        return losses, states_of(engine)


def train_late(engine: Engine, steps: int, hyper: AdamWStep, max_norm: float | None = None) -> list[float]:
    """Losses of some steps, each read a step late, as the trainer does."""
    losses, waiting = [], None
    for k in range(steps):
        result = engine.train_step(batch_at(RECORDS, 4, k), replace(hyper, step=k + 1), max_norm)
        losses += [waiting.loss] if waiting else []
        waiting = result
    return [*losses, waiting.loss] if waiting else []


@cache
def base(family: str, dtype: torch.dtype, max_norm: float | None) -> tuple[list[float], States]:
    return run(family, dtype, max_norm)


PLACEMENTS: dict[str, dict[str, int]] = {
    "again": {},
    "window of 3": {"window_depth": 3},
    "all in the window": {"window_depth": BLOCKS},
    "boundaries in host memory": {"host_boundaries": BLOCKS},
    "two boundaries in host memory": {"host_boundaries": 2, "window_depth": 3},
    "expensive outputs kept": {"kept_outputs": BLOCKS},
    "one block kept whole, two with outputs": {"kept": 1, "kept_outputs": 2, "host_boundaries": BLOCKS},
    "all outputs in host memory": {"host_outputs": 99, "host_output_bytes": 2**22, "host_boundaries": BLOCKS},
    "some outputs in host memory": {"kept": 1, "kept_outputs": 1, "host_outputs": 2, "host_output_bytes": 2**22},
}


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("family", FAMILIES)
def test_placement_does_not_change_a_bit(family: str, dtype: torch.dtype, placement: str):
    losses, states = run(family, dtype, sizes=replace(BASE, **PLACEMENTS[placement]))
    assert losses == base(family, dtype, None)[0]
    assert differences(states, base(family, dtype, None)[1]) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_timing_of_updates_does_not_change_a_bit(family: str):
    for max_norm, slots in ((1e9, BLOCKS), (None, 1)):
        losses, states = run(family, torch.bfloat16, max_norm, replace(BASE, gradient_slots=slots))
        assert losses == base(family, torch.bfloat16, None)[0]
        assert differences(states, base(family, torch.bfloat16, None)[1]) == []


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("family", [*FAMILIES, "gpt2", "opt", "qwen3_moe"])
def test_fp32_agrees_with_the_cpu(family: str, max_norm: float | None):
    if family == "gpt2":
        tiny_on = {device: subject(tiny_model(family), device) for device in ("cpu", "cuda")}
    else:
        tiny_on = {device: tiny(family, device) for device in ("cpu", "cuda")}
    losses: dict[str, list[float]] = {}
    weights: dict[str, dict[str, torch.Tensor]] = {}
    for device, of in tiny_on.items():
        with tiny_engine(of, BASE) as engine:
            results = [engine.train_step(batch_at(RECORDS, 4, k), hyper_at(k + 1), max_norm) for k in range(2)]
            losses[device] = [results[1].loss, results[1].grad_norm]
            weights[device] = {n: v for _, group in engine.weights(torch.float32) for n, v in group.items()}
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-4)
    for name, value in weights["cuda"].items():
        torch.testing.assert_close(value, weights["cpu"][name], rtol=0, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def resident_losses(model: Any, steps: int, hyper: AdamWStep, device: str) -> list[float]:
    """Mixed precision as it is usually done: bf16 weights on the GPU, fp32 masters beside them, plain AdamW."""
    masters = {name: value.detach().float().to(device) for name, value in model.named_parameters()}
    name_of = {id(value): name for name, value in model.named_parameters()}
    groups = [
        {**group, "params": [masters[name_of[id(value)]] for value in group["params"]]}
        for group in parameter_groups(model, hyper.weight_decay)
    ]
    optimizer = torch.optim.AdamW(groups, hyper.learning_rate, (hyper.beta1, hyper.beta2), hyper.epsilon)
    model = deepcopy(model).to(device, torch.bfloat16).train()
    losses = []
    for k in range(steps):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(masters[name])
        batch = batch_at(RECORDS, 4, k)
        loss = mean_loss(model, replace(batch, input_ids=batch.input_ids.to(device), targets=batch.targets.to(device)))
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            masters[name].grad, parameter.grad = parameter.grad.float(), None
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_losses_are_those_of_resident_mixed_precision(family: str):
    of, hyper = tiny(family, "cuda"), replace(hyper_at(1), learning_rate=1e-3)
    with tiny_engine(of, replace(BASE, host_boundaries=1), torch.bfloat16) as engine:
        ours = train_late(engine, STEPS, hyper)
    resident = resident_losses(of.model, STEPS, hyper, "cuda")
    assert ours == pytest.approx(resident, rel=2e-3)


def test_kept_outputs_take_what_was_measured():
    of = subject(tiny_model("llama", num_hidden_layers=6, hidden_size=512, intermediate_size=1536), "cuda")
    work = measure_work(of.decoder, 1024, torch.bfloat16)
    query, key, value, attention, out, gate, up = 512, 256, 256, 512, 512, 1536, 1536  # down's is not asked for
    log_sums = 4 * 4  # of four heads, in fp32
    assert work.kept_outputs_bytes == 1024 * (2 * (query + key + value + attention + out + gate + up) + log_sums)
    peaks = []
    for kept_outputs in (0, 5):
        sizes = Sizes(2, 8, 1, 1024, gradient_slots=6, host_boundaries=0, head_chunk=512, kept_outputs=kept_outputs)
        with tiny_engine(of, sizes, torch.bfloat16) as engine:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            engine.train_step(batch_at(make_records(8, lengths=(1024, 1024)), 8, 0), hyper_at(1), None)
            engine.drain()
            peaks.append(torch.cuda.max_memory_allocated() - before)
    assert 3 < (peaks[1] - peaks[0]) / (8 * work.kept_outputs_bytes) < 5.2  # of one block they are there anyway


def test_outputs_in_host_memory_take_two_places_on_the_device():
    """As many leave while a forward computes, and arrive while a backward does, however many blocks there are."""
    of = subject(tiny_model("llama", num_hidden_layers=6, hidden_size=512, intermediate_size=1536), "cuda")
    place, peaks = 8 * measure_work(of.decoder, 1024, torch.bfloat16).kept_outputs_bytes + FIXED_BYTES, []
    for host_outputs in (0, 6):
        sizes = Sizes(
            2, 8, 1, 1024, gradient_slots=6, host_boundaries=0, head_chunk=512, host_outputs=host_outputs,
            host_output_bytes=place,
        )  # fmt: skip
        with tiny_engine(of, sizes, torch.bfloat16) as engine:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            for step in (1, 2):
                engine.train_step(batch_at(make_records(8, lengths=(1024, 1024)), 8, 0), hyper_at(step), None)
            engine.drain()
            peaks.append(torch.cuda.max_memory_allocated() - before)
    assert (peaks[1] - peaks[0]) / place < 2.01


def test_memory_is_what_the_footprint_says():
    """A model large enough that block-sized buffers, not torch's rounding to 512 bytes, decide."""
    of = subject(tiny_model("llama", num_hidden_layers=6, hidden_size=512, intermediate_size=1536), "cuda")
    sizes = Sizes(2, 4, 2, max_length=256, gradient_slots=6, host_boundaries=2, head_chunk=512)
    work, model = measure_work(of.decoder, 256, torch.bfloat16), model_sizes(of.decoder)
    records = make_records(8, lengths=(256, 256))
    torch.accelerator.synchronize()
    before = torch.cuda.memory_allocated()
    with tiny_engine(of, sizes, torch.bfloat16) as engine:
        torch.cuda.reset_peak_memory_stats()
        for k in range(3):
            engine.train_step(batch_at(records, 8, k), hyper_at(k + 1), 1.0)
        engine.drain()
        peak = torch.cuda.max_memory_allocated() - before
        allocated = sum(engine.allocator.allocated_bytes.values())
    predicted = max(sum(phase.values()) for phase in device_bytes(model, work, sizes, torch.bfloat16).values())
    assert sum(host_bytes(model, sizes, torch.bfloat16).values()) == pytest.approx(allocated, rel=0.03)
    assert peak == pytest.approx(predicted - work.workspace_bytes, rel=0.1)


def test_the_head_does_not_stay_on_the_gpu():
    """A large vocabulary: between steps neither its weight nor its gradient is there."""

    def allocated_after_a_step(vocabulary: int) -> int:
        of = subject(tiny_model("llama", vocab_size=vocabulary), "cuda")
        with tiny_engine(of, BASE, torch.bfloat16) as engine:
            engine.train_step(batch_at(RECORDS, 4, 0), hyper_at(1))
            engine.drain()
            torch.accelerator.synchronize()
            return torch.cuda.memory_allocated()

    allocated_after_a_step(128)  # libraries take their workspaces
    few, many = allocated_after_a_step(128), allocated_after_a_step(64000)
    assert many - few < 64000 * 64 * (2 + 4) / 2
