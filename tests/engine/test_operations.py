"""Operations are counted as PyTorch would do them, for any family, without doing them."""

from typing import Any

import pytest
import torch
from shapes import SHAPES
from tiny_models import tiny_config

from slideformer.engine.operations import ATTENTION_BACKWARD, count_operations
from slideformer.models.architecture import Decoder
from slideformer.plan.operations import ModelOperations


def counted(config: Any, fused: bool = False) -> ModelOperations:
    operations = count_operations(Decoder(config, torch.device("cpu"), None), torch.bfloat16, fused)
    assert operations is not None
    return operations


def test_a_llama_by_hand():
    operations = counted(SHAPES["qwen3-4b"]())
    hidden, heads, groups, width, inner = 2560, 32, 8, 128, 9728
    weights = hidden * width * (2 * heads + 2 * groups) + 3 * hidden * inner
    block = operations.blocks[0]
    assert len(operations.blocks) == 36 and operations.head_parameters == 151936 * hidden
    assert block.forward.matmul_flops == pytest.approx(2 * weights)
    assert block.backward.matmul_flops == pytest.approx(4 * weights)
    assert block.forward.attention_flops == pytest.approx(4 * heads * width)
    assert block.backward.attention_flops == pytest.approx(ATTENTION_BACKWARD * 4 * heads * width)


def test_fused_kernels_move_fewer_bytes_but_what_a_matrix_product_reads():
    eager, fused = (counted(SHAPES["qwen3-4b"](), fused).blocks[0].forward for fused in (False, True))
    operands = 2 * (2560 + 4096 + 2560 + 9728)  # bf16: both norms, attention and the gated product reach memory
    assert operands < fused.memory_bytes < eager.memory_bytes / 2
    assert fused.matmul_flops == eager.matmul_flops and fused.calls == eager.calls > 20


def test_nothing_is_allocated_for_70_billion_parameters():
    assert counted(SHAPES["llama-3.3-70b"]()).blocks[79].forward.matmul_flops > 1.6e9


@pytest.mark.parametrize("family", ["gemma2", "phi3", "gpt2", "opt"])
def test_families(family: str):
    operations = counted(tiny_config(family))
    assert all(block.backward.matmul_flops >= block.forward.matmul_flops > 0 for block in operations.blocks)


def test_a_model_that_routes_by_values_is_counted_or_left_out():
    decoder = Decoder(tiny_config("qwen3_moe"), torch.device("cpu"), None)
    operations = count_operations(decoder, torch.float32, fused=False)
    assert operations is None or len(operations.blocks) == decoder.depth
