"""Prompts and how they are answered: text in, text out, for sample answers during training and for `generate`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from slideformer.data.prompts import decode_answer, encode_prompt
from slideformer.engine.sampling import Decoding
from slideformer.errors import ConfigError


class Answering(Protocol):
    """An engine, training or not."""

    def generate(
        self, prompts: Sequence[list[int]], decoding: Decoding, on_token: Callable[[int, int], None] | None = None
    ) -> list[list[int]]: ...


@dataclass(frozen=True)
class Prompts:
    """Prompts as text and as token ids, and how their answers are chosen."""

    texts: list[str]
    tokens: list[list[int]]
    decoding: Decoding
    tokenizer: Any

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.tokens))

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest prompt with the longest answer."""
        return self.longest + self.decoding.max_new_tokens

    def answers(self, engine: Answering, on_text: Callable[[str], None] | None = None) -> list[str]:
        """The engine's answers as text.

        Args:
            on_text: told what the first prompt's answer is so far, after each of its tokens.
        """
        first: list[int] = []

        def on_token(number: int, token: int) -> None:
            if number == 0 and on_text:
                first.append(token)
                on_text(decode_answer(self.tokenizer, first))

        answers = engine.generate(self.tokens, self.decoding, on_token if on_text else None)
        return [decode_answer(self.tokenizer, answer) for answer in answers]


def make_prompts(
    texts: list[str], tokenizer: Any, model_path: Path, model_config: Any, decoding: Decoding, raw: bool
) -> Prompts:
    """Tokenize prompts for a model.

    Args:
        raw: without the chat template.

    Raises:
        ConfigError: the model has no tokenizer, or not enough positions.
    """
    if tokenizer is None:
        raise ConfigError(f"{model_path} has no tokenizer, so prompts cannot be read", "save the tokenizer with it")
    prompts = Prompts(texts, [encode_prompt(tokenizer, text, raw) for text in texts], decoding, tokenizer)
    for text, tokens in zip(texts, prompts.tokens, strict=True):
        if not tokens:
            raise ConfigError(f"the prompt {text!r} has no tokens", "give a longer one")
    positions = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if positions and prompts.longest_sequence > positions:
        raise ConfigError(
            f"a prompt of {prompts.longest} tokens and {decoding.max_new_tokens} new ones are more than the "
            f"{positions} positions of the model",
            "ask for fewer new tokens, or shorten the prompt",
        )
    return prompts
