"""What a model computes behind its last block, by its own forward: final norm, scale, head, soft-cap."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel

from slideformer.errors import UnsupportedModel
from slideformer.models.boundary import Boundary
from slideformer.models.packed_rows import PackedRows
from slideformer.models.stand_ins import BlockChain, EmbeddingStandIn, HeadStandIn, StopForward

Weights = Mapping[str, Tensor]


class Tail:
    """The model's forward over hidden states that leave the last block.

    Args:
        model: over stand-ins; `embedding`, `chain` and `head` are its own.
        boundary: the shape of hidden states.
        head_bias_name: None if the head has no bias.
        rows: what is known of the model's.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        embedding: EmbeddingStandIn,
        chain: BlockChain,
        head: HeadStandIn,
        boundary: Boundary,
        head_bias_name: str | None,
        rows: PackedRows,
    ):
        self._model, self._embedding, self._chain, self._head = model, embedding, chain, head
        self._boundary, self._head_bias_name, self._rows = boundary, head_bias_name, rows

    def logits(self, hidden: Tensor, head_weight: Tensor, head_grad: Tensor | None, shell: Weights) -> Tensor:
        """Logits [c, 1, vocabulary] of c sequences of one token that leave the last block.

        In backward the head weight's gradient is added to `head_grad` (fp32 [vocabulary, hidden]), and autograd sees
        only the hidden states and the shell. Tokens are passed as sequences of one: nothing behind the last block mixes
        tokens, and no position table limits c.
        """
        self._head.bind(head_weight, head_grad)
        try:
            return self._run(hidden, shell).logits
        finally:
            self._head.unbind()

    def head_input(self, hidden: Tensor, shell: Weights) -> Tensor:
        """What the head is given [c, 1, width] for hidden states as in `logits`: the final norm's output, mostly."""
        self._head.capture()
        try:
            self._run(hidden, shell)
            raise UnsupportedModel("the model's forward computes its logits without calling its head")
        except StopForward:
            assert self._head.captured is not None
            return self._head.captured
        finally:
            self._head.unbind()

    def shard_logits(
        self, product: Callable[[], Tensor], weight: Tensor, first: int, count: int, shell: Weights
    ) -> Tensor:
        """Logits [c, 1, v] of a shard of the vocabulary, by the model's own code behind its head (bias, soft-cap).

        Args:
            product: gives the head's input times the shard's weight [c, 1, v].
            weight: [v, width], the entries from `first` on.
            count: c.
        """
        bias = {n: shell[n][first : first + len(weight)] for n in shell if n == self._head_bias_name}
        hidden = torch.zeros(self._boundary.of(count, 1), dtype=weight.dtype, device=weight.device)
        self._head.bind_product(product, weight)
        try:
            return self._run(hidden, {**shell, **bias}).logits
        finally:
            self._head.unbind()

    def _run(self, hidden: Tensor, shell: Weights) -> Any:
        """The model's own forward behind the last block, over tokens as sequences of one."""
        count = self._boundary.by_token(hidden).shape[0]
        ignored = hidden.new_zeros(count, 1, self._embedding.embedding_dim)  # some models scale it in place
        self._embedding.bind(ignored, None)
        self._chain.start_passing(hidden)
        ids = torch.zeros(count, 1, dtype=torch.int64, device=hidden.device)
        with self._rows.known():
            return functional_call(self._model, dict(shell), (), {"input_ids": ids, "use_cache": False})
