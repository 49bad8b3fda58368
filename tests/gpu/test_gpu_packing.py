"""Packed rows on a GPU: the variable-length kernel, its agreement with padded training, and no [T, T] mask."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from tiny_runs import Subject, as_int32, hyper_at, make_records, tiny_engine
from torch import Tensor, nn

from slideformer.data.batches import Batch, collate, collate_packed
from slideformer.data.examples import Example
from slideformer.data.packing import best_fit
from slideformer.engine.engine import Engine
from slideformer.engine.measure import measure_work, model_sizes
from slideformer.kernels import varlen_attention
from slideformer.models import packed_attention as packed
from slideformer.models.architecture import Decoder
from slideformer.models.packed_attention import Documents, attending
from slideformer.plan.footprint import device_bytes
from slideformer.plan.sizes import Sizes

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(280)]

STEPS, ROW_LENGTH = 4, 256
WIDE: dict[str, Any] = dict(
    hidden_size=256, intermediate_size=512, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
    num_hidden_layers=4, max_position_embeddings=1024,
)  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": WIDE,
    "qwen3": WIDE,
    "mistral": WIDE | dict(sliding_window=32),
    "phi3": {k: v for k, v in WIDE.items() if k != "head_dim"} | dict(sliding_window=32),
    "gemma2": WIDE | dict(sliding_window=32, query_pre_attn_scalar=64),
    "gpt2": dict(n_embd=256, n_head=4, n_layer=4, n_positions=1024),
}
IN_ONE_KERNEL = [family for family in FAMILIES if family != "gemma2"]  # its soft-cap is beyond the kernel
LENGTHS = (1, 300, 5, 64, 65, 127, 128, 334)  # of 1024 tokens


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """fp32 matrix products in fp32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@cache
def tiny(family: str, is_packed: bool, device: str = "cuda") -> Subject:
    model = tiny_model(family, **FAMILIES[family])
    return Subject(model, Decoder(model.config, torch.device(device), packed=is_packed))


@cache
def batches() -> tuple[Batch, Batch]:
    """The same documents packed and padded."""
    examples = [Example(i, *as_int32(record)) for i, record in enumerate(make_records(24, lengths=(8, 160)))]
    rows = best_fit([len(example.input_ids) for example in examples], ROW_LENGTH)
    return collate_packed([[examples[i] for i in row] for row in rows], 0), collate(examples, 0)


def sizes_for(batch: Batch) -> Sizes:
    micro = -(-len(batch.lengths) // 2)
    return Sizes(2, micro, 2, max(batch.lengths), gradient_slots=4, host_boundaries=1, head_chunk=512)


def train(engine: Engine, batch: Batch) -> tuple[list[float], list[float]]:
    results = []
    for k in range(STEPS):
        result = engine.train_step(batch, replace(hyper_at(k + 1), learning_rate=1e-3))
        results.append((result.loss, result.grad_norm))
    losses, norms = zip(*results, strict=True)
    return list(losses), list(norms)


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The longest document of each call of the kernel."""
    varlen_attention.agrees_with_reference(torch.device("cuda", 0), torch.bfloat16)  # its own calls do not count
    calls: list[int] = []
    real = varlen_attention.varlen_attn

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments[5])
        return real(*arguments, **named)

    monkeypatch.setattr(varlen_attention, "varlen_attn", counted)
    yield calls


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_packed_is_bf16_padded(family: str, kernel_calls: list[int]):
    rows, padded = batches()
    with tiny_engine(tiny(family, True), sizes_for(rows), torch.bfloat16) as engine:
        losses, norms = train(engine, rows)
        evaluated = engine.evaluate([rows]).loss
    used_the_kernel = bool(kernel_calls)
    with tiny_engine(tiny(family, False), sizes_for(padded), torch.bfloat16) as engine:
        expected_losses, expected_norms = train(engine, padded)
        expected = engine.evaluate([padded]).loss
    assert used_the_kernel == (family in IN_ONE_KERNEL)
    assert losses == pytest.approx(expected_losses, rel=2e-3)
    assert norms == pytest.approx(expected_norms, rel=3e-2)
    assert evaluated == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_fp32_agrees_with_the_cpu(family: str):
    """Without the kernel: the same code one document after the other, on both devices."""
    rows, _ = batches()
    found = {}
    for device in ("cpu", "cuda"):
        with tiny_engine(tiny(family, True, device), sizes_for(rows)) as engine:
            found[device] = train(engine, rows)
    assert found["cuda"][0] == pytest.approx(found["cpu"][0], rel=1e-4)
    assert found["cuda"][1] == pytest.approx(found["cpu"][1], rel=1e-3)


class Attention(nn.Module):
    is_causal = True
    num_key_value_groups = 2
    head_dim = 64


@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
@pytest.mark.parametrize("window", [None, 1, 16, 100, 1000])
@pytest.mark.parametrize("value_dim", [1.0, 0.5])
def test_the_kernel_against_one_document_after_the_other(
    head_dim: int, window: int | None, value_dim: float, kernel_calls: list[int]
):
    if head_dim > varlen_attention._widest_head(torch.device("cuda", 0)):
        pytest.skip("wider than this GPU's kernel")
    torch.manual_seed(0)
    shapes = [(2, 8, 512, head_dim), (2, 4, 512, head_dim), (2, 4, 512, int(head_dim * value_dim))]
    given = [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
    exact = [tensor.detach().float().requires_grad_() for tensor in given]
    ours, expected = (attend(tensors, window) for tensors in (given, exact))
    assert kernel_calls == [max(LENGTHS)]  # fp32 does not go there
    dy = torch.randn_like(expected)
    gradients = torch.autograd.grad(ours, given, dy.to(ours.dtype))
    # A token that sees only itself has zero gradients for query and key; what is there is rounding, of dy's size.
    for one, other in zip([ours, *gradients], [expected, *torch.autograd.grad(expected, exact, dy)], strict=True):
        size = other.norm() if float(other.norm()) > 1e-4 * float(dy.norm()) else dy.norm()
        assert float((one.float() - other).norm() / size) < 1e-2


def attend(tensors: list[Tensor], window: int | None) -> Tensor:
    bounds = torch.tensor([0, *LENGTHS], device="cuda").cumsum(0)
    positions = torch.zeros(2, 512, dtype=torch.int64, device="cuda")  # not read by attention
    query, key, value = tensors
    with attending(Documents(positions, bounds, LENGTHS)):
        return packed.packed_attention(
            "sdpa", Attention(), query, key, value, None, sliding_window=window, scaling=0.1
        )[0]


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_long_rows_make_no_square(family: str):
    """32k tokens in a row: a [T, T] mask would be 1 GiB of booleans, a step here takes a fraction of it."""
    length, document = 32768, 1024
    of = tiny(family, True)
    ids = torch.randint(3, 128, (length,), dtype=torch.int32)
    rows = collate_packed([[Example(i, part, part) for i, part in enumerate(ids.split(document))]], 0)
    sizes = Sizes(2, 1, 1, length, gradient_slots=4, host_boundaries=0, head_chunk=1024)
    with tiny_engine(of, sizes, torch.bfloat16) as engine:
        engine.train_step(rows, hyper_at(1))
        engine.drain()
        torch.accelerator.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        engine.train_step(rows, hyper_at(2))
        engine.drain()
        torch.accelerator.synchronize()
        assert torch.cuda.max_memory_allocated() - before < length * length / 2


def test_memory_is_what_the_footprint_says():
    """Rows of one document and rows of many are both measured; the hungrier decides."""
    length, kinds = 2048, [(2048,), (64,) * 32]
    sizes = Sizes(2, 2, 2, length, gradient_slots=4, host_boundaries=2, head_chunk=512)
    model = tiny_model("llama", **WIDE | dict(hidden_size=512, intermediate_size=1536, num_attention_heads=8))
    of = Subject(model, Decoder(model.config, torch.device("cuda"), packed=True))
    work = measure_work(of.decoder, length, torch.bfloat16, kinds)
    peak = max(peak_bytes(of, sizes, row) for row in kinds)
    phases = device_bytes(model_sizes(of.decoder), work, sizes, torch.bfloat16).values()
    predicted = max(sum(phase.values()) for phase in phases)
    assert peak == pytest.approx(predicted - work.workspace_bytes, rel=0.1)


def peak_bytes(of: Subject, sizes: Sizes, row: tuple[int, ...]) -> int:
    """Of three steps of full micro-batches, the engine's buffers included."""
    ids = torch.randint(3, 128, (sum(row),), dtype=torch.int32).split(row)
    rows = collate_packed([[Example(0, part, part) for part in ids]] * 4, 0)
    torch.accelerator.synchronize()
    before = torch.cuda.memory_allocated()
    with tiny_engine(of, sizes, torch.bfloat16) as engine:
        torch.cuda.reset_peak_memory_stats()
        for k in range(3):
            engine.train_step(rows, hyper_at(k + 1))
        engine.drain()
        torch.accelerator.synchronize()
        return torch.cuda.max_memory_allocated() - before
