"""Operations that training a model takes by definition, and what share of the machine's rate they are."""

from slideformer.plan.operations import ModelOperations, StepTokens

BACKWARD = 2  # a product's two gradients are a product each


def step_flops(operations: ModelOperations, tokens: StepTokens) -> float:
    """Floating-point operations of forward and backward of one step: every matrix product, and causal attention.

    Nothing that is recomputed counts, nor do masked pairs of tokens: token t of a row looks at t + 1. This is the
    numerator of MFU (PaLM, arXiv 2204.02311, appendix B), with causal attention instead of full. 2 for a multiply-add.
    """
    pairs = (tokens.context + 1) / 2  # that a token looks at, on average
    blocks = sum(block.forward.matmul_flops + block.backward.matmul_flops for block in operations.blocks)
    attention = sum((1 + BACKWARD) * block.forward.attention_flops for block in operations.blocks)
    head = (1 + BACKWARD) * 2 * operations.head_parameters
    return tokens.computed * (blocks + attention * pairs) + tokens.trained * head
