"""What the plan predicts is what the engine allocates, for every family and choice of sizes."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, tiny_config
from tiny_runs import SIZES

from slideformer.engine.engine import Engine
from slideformer.engine.measure import block_kinds, measure_work, model_sizes
from slideformer.models.architecture import Decoder
from slideformer.plan.footprint import host_bytes
from slideformer.plan.sizes import Sizes

LENGTH = 32


@cache
def decoder_of(family: str, **changes: Any) -> Decoder:
    return Decoder(tiny_config(family, **changes), torch.device("cpu"))


CHOICES = {
    "small": replace(SIZES, max_length=LENGTH),
    "host boundaries": replace(SIZES, max_length=LENGTH, host_boundaries=2, micro_batches=4),
    "long": Sizes(3, 4, 2, max_length=128, gradient_slots=3, host_boundaries=3, head_chunk=64),
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "opt", "qwen3_moe"])
def test_predicted_host_bytes_are_the_allocated(family: str, dtype: torch.dtype, choice: str):
    check_host_bytes(family, dtype, CHOICES[choice])


RESIDENT = {
    "a block": {"resident": 1},
    "all blocks": {"resident": 3},
    "the ends": {"resident_ends": True},
    "all, clipped": {"resident": 3, "resident_ends": True, "resident_gradients": True},
}


@pytest.mark.parametrize("resident", RESIDENT)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_what_is_resident_does_not_count_on_the_host(family: str, resident: str):
    sizes = replace(CHOICES["small"], **RESIDENT[resident])
    check_host_bytes(family, torch.bfloat16, sizes)
    model = model_sizes(decoder_of(family))
    here, all_here = (sum(host_bytes(model, of, torch.bfloat16).values()) for of in (sizes, CHOICES["small"]))
    assert here <= all_here and (here < all_here or resident == "a block")  # which has to pass the way out


def check_host_bytes(family: str, dtype: torch.dtype, sizes: Sizes) -> None:
    decoder = decoder_of(family)
    with Engine(decoder, sizes, dtype, threads=1) as engine:
        allocated = sum(engine.allocator.allocated_bytes.values())
    predicted = sum(host_bytes(model_sizes(decoder), sizes, dtype).values())
    assert predicted == pytest.approx(allocated, rel=0.005)  # norms and losses: a few bytes a layer


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_those_of_the_model(family: str):
    decoder = decoder_of(family)
    sizes = model_sizes(decoder)
    assert sizes.parameters == sum(torch.Size(shape).numel() for shape in decoder.parameter_shapes.values())
    assert sizes.blocks == decoder.block_names and len(sizes.block_layouts) == decoder.depth
    assert sizes.head == ("embedding" if decoder.tied else "head") and sizes.head in sizes.layouts
    assert sizes.hidden == 64 and sizes.vocabulary == 128


def test_blocks_are_measured_once_a_kind():
    assert block_kinds(decoder_of("llama")) == [0]
    assert block_kinds(decoder_of("qwen3_moe")) == [0, 1]  # experts, then a dense one
    assert block_kinds(decoder_of("gemma2")) == [0, 1]  # sliding, then full attention


def test_the_estimate_on_the_cpu_grows_with_length_and_width():
    short, long = (measure_work(decoder_of("llama"), length, torch.float32) for length in (64, 256))
    wide = measure_work(decoder_of("llama", hidden_size=128, intermediate_size=192), 64, torch.float32)
    assert 3.5 < long.block_bytes / short.block_bytes < 4.5
    assert 1.3 < wide.block_bytes / short.block_bytes < 3 and wide.block_fixed_bytes > short.block_fixed_bytes
    assert 0 < short.kept_outputs_bytes < 0.75 * short.kept_bytes
    assert short.logit_bytes == 128 * 16 and short.workspace_bytes == 0


def test_measuring_leaves_no_gradient_and_no_mode_behind():
    decoder = decoder_of("gpt2")
    measure_work(decoder, 16, torch.float32)
    assert decoder.model.training and torch.is_grad_enabled()
    assert {p.device.type for block in decoder.blocks for p in block.parameters()} == {"meta"}
