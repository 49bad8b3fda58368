"""Generation through the window: every new token of all prompts is one forward pass."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slideformer.engine import compute
from slideformer.engine.forward import ForwardMachinery, Passes
from slideformer.engine.sampling import Decoding, Sampler
from slideformer.engine.sequences import CachedGroup, Group, RecomputedGroup, Tokens
from slideformer.models.architecture import Decoder
from slideformer.models.caching import keeps_keys_and_values

OnToken = Callable[[int, int], None]


@dataclass(frozen=True)
class Batching:
    """How many prompts are answered at once: up to `groups` groups of `group_size`, each one micro-batch.

    `cached`: whether keys and values are kept; else every pass computes the sequences from their first token.
    """

    group_size: int
    groups: int
    cached: bool

    def split(self, prompts: Sequence[Tokens]) -> Iterator[list["Answering"]]:
        """The groups that are answered together, one round behind the other."""
        kind = CachedGroup if self.cached else RecomputedGroup
        starts = range(0, len(prompts), self.group_size)
        all_groups = [prompts[start : start + self.group_size] for start in starts]
        groups = [Answering(kind(g), range(s, s + len(g))) for g, s in zip(all_groups, starts, strict=True)]
        for first in range(0, len(groups), self.groups):
            yield groups[first : first + self.groups]


def batching_for(
    decoder: Decoder, prompts: Sequence[Tokens], decoding: Decoding, group_size: int, groups: int, max_length: int
) -> Batching:
    """How an engine built for passes of `max_length` tokens a sequence answers.

    Raises:
        ValueError: a sequence needs longer passes.
    """
    cached = keeps_keys_and_values(decoder)
    longest = pass_length(max(map(len, prompts)), decoding.max_new_tokens, cached)
    if longest > max_length:
        raise ValueError(f"generation in passes over {longest} tokens; the engine is built for {max_length}")
    return Batching(group_size, groups, cached)


def pass_length(prompt_tokens: int, max_new_tokens: int, cached: bool) -> int:
    """Tokens of a sequence in the longest pass: the prompt, or without a cache all but the last token."""
    return prompt_tokens + (0 if cached else max_new_tokens - 1)


class Answering:
    """A group on its way to its answers.

    Args:
        numbers: of its prompts, among all prompts.
    """

    def __init__(self, group: Group, numbers: range):
        self.group: Group | None = group
        self._numbers = numbers
        self.answers: list[Tokens] = [[] for _ in numbers]
        self._ended = [False for _ in numbers]

    def take(self, tokens: list[int], stop_ids: frozenset[int], on_token: OnToken | None) -> None:
        """Each sequence's next token; of one that has ended it is ignored."""
        assert self.group is not None
        for k, token in enumerate(tokens):
            self.group.answers[k].append(token)
            self._ended[k] |= token in stop_ids
            if not self._ended[k]:
                self.answers[k].append(token)
                if on_token:
                    on_token(self._numbers[k], token)
        if all(self._ended):
            self.group = None  # and with it keys and values

    def finish(self) -> list[Tokens]:
        """The answers; keys and values are let go of."""
        self.group = None
        return self.answers

    def generators(self, sampler: Sampler) -> list[torch.Generator]:
        return [sampler.generator(number) for number in self._numbers]


def generate(
    e: ForwardMachinery,
    prompts: Sequence[Tokens],
    decoding: Decoding,
    batching: Batching,
    on_token: OnToken | None = None,
) -> list[Tokens]:
    """The answers to `prompts` (token ids, none empty), each without the token that stopped it.

    Answers do not depend on which prompts are answered together, but for rounding.

    Args:
        on_token: told of (number of the prompt, token) as soon as it is chosen.

    Raises:
        NonFinite: the model's output is not a number.
    """
    answers: list[Tokens] = []
    sampler = Sampler(decoding)
    with e.decoder.without_dropout(), e.decoder.unpacked(), Passes(e) as passes:
        for together in batching.split(prompts):
            _answer(passes, e, together, sampler, decoding, on_token)
            answers += [answer for answering in together for answer in answering.finish()]
    return answers


def _answer(
    passes: Passes,
    e: ForwardMachinery,
    together: list[Answering],
    sampler: Sampler,
    decoding: Decoding,
    on_token: OnToken | None,
) -> None:
    """Token after token, until every answer has ended or is as long as it may be."""
    generators = {answering: answering.generators(sampler) for answering in together}
    for count in range(1, decoding.max_new_tokens + 1):
        groups = {answering: answering.group for answering in together if answering.group is not None}
        if not groups:
            return
        logits = _next_logits(passes, e, list(groups.values()), more=count < decoding.max_new_tokens)
        for answering, scores in zip(groups, logits, strict=True):
            answering.take(sampler.choose(scores, generators[answering]), decoding.stop_ids, on_token)


def _next_logits(passes: Passes, e: ForwardMachinery, groups: list[Group], more: bool) -> list[Tensor]:
    """What each sequence may go on with, fp32 [b, vocabulary] of each group; waits for it."""
    run, vocabulary = e.lanes.compute.run, e.decoder.head_shape[0]
    batches = [group.next_batch() for group in groups]
    _, xs = passes.hidden(batches, [group.enter for group in groups], more)
    logits = [e.lanes.empty((len(batch.lengths), vocabulary), torch.float32) for batch in batches]
    for group, x, out in zip(groups, xs, logits, strict=True):
        run(compute.next_logits, e.decoder, passes.head, passes.shell, run(group.last_hidden, x), out)
    e.lanes.compute.record().wait()
    return logits
