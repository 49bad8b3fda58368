"""Sequences that grow together: what of them goes into the next forward pass, and the tokens that come of it."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from slideformer.data.batches import Batch
from slideformer.data.chat import IGNORED
from slideformer.engine.compute import MicroBatch, Weights
from slideformer.models.architecture import Decoder
from slideformer.models.caching import cache_argument, cache_of, takes_argument
from slideformer.models.stand_ins import DecoderInputs

Tokens = list[int]


class Group(Protocol):
    """Sequences that are computed as one batch; `answers` are the tokens chosen so far, of all equally many."""

    answers: list[Tokens]

    def next_batch(self) -> Batch:
        """What goes in next, untrained."""
        ...

    def enter(self, decoder: Decoder, batch: MicroBatch, rows: Tensor, shell: Weights) -> DecoderInputs:
        """Work of the compute lane: `Decoder.enter` of that batch."""
        ...

    def last_hidden(self, x: Tensor) -> Tensor:
        """Work of the compute lane: of [b, t, hidden] those that say the next tokens, [b, 1, hidden]."""
        ...


class CachedGroup:
    """Keys and values are kept, so that a pass computes one token a sequence.

    Prompts of different lengths are padded on the *left*: the newest tokens then stand in one column, and
    sliding-window attention, which counts from the end of the cache, sees what it would see without padding. The
    model's own masks and positions leave the padding out.
    """

    def __init__(self, prompts: Sequence[Tokens]):
        self._prompts = prompts
        self._longest = max(map(len, prompts))
        self._padding = torch.tensor([self._longest - len(prompt) for prompt in prompts])
        self._cache: Any = None
        self.answers: list[Tokens] = [[] for _ in prompts]

    def next_batch(self) -> Batch:
        if not self.answers[0]:
            return untrained([[0] * (self._longest - len(prompt)) + prompt for prompt in self._prompts])
        return untrained([answer[-1:] for answer in self.answers])

    def enter(self, decoder: Decoder, batch: MicroBatch, rows: Tensor, shell: Weights) -> DecoderInputs:
        arguments: dict[str, Any] = {"use_cache": True}
        if self._cache is not None:
            arguments[str(cache_argument(decoder.model))] = self._cache
        if self._padding.any():
            arguments |= self._without_padding(decoder, batch.input_ids)
        with torch.no_grad():
            inputs = decoder.enter(batch.input_ids, rows, batch.row_of, shell, batch.seed, **arguments)
        self._cache = cache_of(inputs)
        return inputs

    def _without_padding(self, decoder: Decoder, input_ids: Tensor) -> dict[str, Tensor]:
        """Mask [b, tokens so far] and positions [b, t] in which padding does not count."""
        seen = torch.arange(self._longest + len(self.answers[0]), device=input_ids.device)
        mask = (seen >= self._padding.to(input_ids.device)[:, None]).long()
        if not takes_argument(decoder.model, "position_ids"):
            return {"attention_mask": mask}
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        return {"attention_mask": mask, "position_ids": positions}

    def last_hidden(self, x: Tensor) -> Tensor:
        return x[:, -1:]


class RecomputedGroup:
    """Nothing is kept: a pass computes every sequence from its first token.

    Sequences are padded on the *right*, where a causal model does not look, so no mask is needed.
    """

    def __init__(self, prompts: Sequence[Tokens]):
        self._prompts = prompts
        self.answers: list[Tokens] = [[] for _ in prompts]

    def next_batch(self) -> Batch:
        sequences = [prompt + answer for prompt, answer in zip(self._prompts, self.answers, strict=True)]
        longest = max(map(len, sequences))
        return untrained([tokens + [0] * (longest - len(tokens)) for tokens in sequences])

    def enter(self, decoder: Decoder, batch: MicroBatch, rows: Tensor, shell: Weights) -> DecoderInputs:
        with torch.no_grad():
            return decoder.enter(batch.input_ids, rows, batch.row_of, shell, batch.seed)

    def last_hidden(self, x: Tensor) -> Tensor:
        last = [len(prompt) + len(self.answers[0]) - 1 for prompt in self._prompts]
        return x[torch.arange(len(last)), last].unsqueeze(1)


def untrained(rows: Sequence[Tokens]) -> Batch:
    """Rows of one length as a batch in which nothing is trained."""
    input_ids = torch.tensor(rows, dtype=torch.int64)
    targets = torch.full_like(input_ids, IGNORED)
    return Batch(input_ids, targets, (input_ids.shape[1],) * len(rows), tuple(range(len(rows))))
