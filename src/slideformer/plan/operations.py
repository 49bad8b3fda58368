"""What a model computes, per token: counted once, multiplied by any step's tokens."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Operations:
    """One pass through one block.

    Attributes:
        matmul_flops: floating-point operations of matrix products, per token.
        attention_flops: of attention, per token and token it is in a row with; masked pairs count.
        memory_bytes: that other operations read and write, per token.
        fixed_bytes: the same, however many tokens there are.
        calls: of operators by the host, however many tokens there are.
    """

    matmul_flops: float
    attention_flops: float
    memory_bytes: float
    fixed_bytes: float = 0.0
    calls: float = 0.0


@dataclass(frozen=True)
class BlockOperations:
    """Forward and backward of one block; a recomputed backward is both."""

    forward: Operations
    backward: Operations


@dataclass(frozen=True)
class ModelOperations:
    """All blocks in order, and parameters of the head."""

    blocks: list[BlockOperations]
    head_parameters: int


@dataclass(frozen=True)
class StepTokens:
    """An average step of a run.

    Attributes:
        tokens: without padding.
        computed: with it.
        trained: that the loss is a mean over.
        context: tokens of the row, or of the document in a packed row, that a token is in; the mean over tokens.
    """

    tokens: float
    computed: float
    trained: float
    context: float


def full_step(sequences: int, length: int) -> StepTokens:
    """A step of sequences that are all of one length and trained as a whole."""
    tokens = sequences * length
    return StepTokens(tokens, tokens, tokens, length)
