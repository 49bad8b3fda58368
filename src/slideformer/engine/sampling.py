"""Logits -> the next token, greedily or drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from slideformer.errors import NonFinite


@dataclass(frozen=True)
class Decoding:
    """How answers are chosen.

    Attributes:
        max_new_tokens: of the longest answer.
        stop_ids: tokens that end an answer.
        temperature: divides the logits before drawing; 0 takes the likeliest token.
        top_k: draw among so many of the likeliest tokens.
        top_p: draw among the likeliest tokens that together have this probability.
        seed: with a prompt's number, decides what is drawn.
    """

    max_new_tokens: int
    stop_ids: frozenset[int] = frozenset()
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0


class Sampler:
    """Chooses tokens; transformers' own filters do the cutting, so that they mean what they mean there."""

    def __init__(self, decoding: Decoding):
        self._seed = decoding.seed
        self._filters = []
        if decoding.temperature:
            self._filters.append(TemperatureLogitsWarper(float(decoding.temperature)))
            self._filters += [TopKLogitsWarper(decoding.top_k)] if decoding.top_k else []
            self._filters += [TopPLogitsWarper(decoding.top_p)] if decoding.top_p is not None else []

    def generator(self, number: int) -> torch.Generator:
        """What decides the answer to prompt `number`, whichever prompts are answered with it."""
        (seed,) = np.random.SeedSequence([self._seed, number]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(seed) >> 1)  # torch takes 63 bits

    def choose(self, logits: Tensor, generators: Sequence[torch.Generator]) -> list[int]:
        """The next token of each sequence.

        Args:
            logits: fp32 [b, vocabulary], spent.

        Raises:
            NonFinite: a logit is not a number.
        """
        if bool(logits.isnan().any()):
            raise NonFinite(
                "the model's output is not a number", "its weights are damaged, or its training diverged", 0
            )
        if not self._filters:
            return logits.argmax(-1).tolist()
        for keep in self._filters:
            logits = keep(None, logits)  # type: ignore[arg-type]  # these filters do not look at earlier tokens
        probabilities = logits.softmax(-1).cpu()
        drawn = [torch.multinomial(p, 1, generator=g) for p, g in zip(probabilities, generators, strict=True)]
        return [int(token) for token in drawn]
