"""MFU's numerator, against a count by hand."""

import torch

from slideformer.bench.model_flops import step_flops
from slideformer.bench.shapes import SHAPES
from slideformer.engine.operations import count_operations
from slideformer.models.architecture import Decoder
from slideformer.plan.operations import full_step

HIDDEN, INTERMEDIATE, KEYS, LAYERS, VOCABULARY = 64, 128, 32, 4, 256


def test_products_and_causal_attention_three_times():
    operations = count_operations(Decoder(SHAPES["tiny"](), torch.device("cpu"), "sdpa"), torch.float32, False)
    assert operations is not None
    tokens = full_step(2, 32)
    weights = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * KEYS + 3 * HIDDEN * INTERMEDIATE
    products = 2 * 32 * LAYERS * 6 * weights + tokens.trained * 6 * HIDDEN * VOCABULARY
    pairs = 2 * sum(range(1, 33))  # token t of a row looks at t + 1
    attention = LAYERS * pairs * 3 * 4 * HIDDEN  # scores and values, 2 a multiply-add, backward twice as much
    assert step_flops(operations, tokens) == products + attention
