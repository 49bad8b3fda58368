"""Prompts as text -> token ids, and answers back."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slideformer.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_prompts(prompts: Sequence[str] | Path) -> list[str]:
    """The prompts themselves, or those of a file: one a line; in a .jsonl file a JSON string, or a record's `prompt`.

    Raises:
        DataError: the file cannot be read, or a prompt is empty.
    """
    if isinstance(prompts, Path):
        prompts = _prompts_in(prompts)
    if empty := [number for number, prompt in enumerate(prompts, start=1) if not prompt.strip()]:
        raise DataError(f"prompt {empty[0]} is empty", hint="remove it")
    return list(prompts)


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: str, raw: bool) -> list[int]:
    """Token ids of what the model is to answer: a user's turn in the chat template, where there is one.

    Args:
        raw: take the prompt as it is, with the tokens that the tokenizer itself adds.
    """
    if raw or not tokenizer.chat_template:
        return list(tokenizer(prompt)["input_ids"])  # type: ignore[arg-type]  # one text: one list of ids
    turns = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(str(text), add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]


def decode_answer(tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True))


def stop_ids(model_path: Path, model_config: Any, tokenizer: "PreTrainedTokenizerBase | None") -> frozenset[int]:
    """Tokens that end an answer, by generation_config.json, config.json and the tokenizer."""
    from transformers import GenerationConfig

    has_own = (model_path / "generation_config.json").is_file()
    generation = GenerationConfig.from_pretrained(model_path) if has_own else None
    text_config = model_config.get_text_config()
    found: set[int] = set()
    for holder in (generation, text_config, tokenizer):
        given = getattr(holder, "eos_token_id", None)
        found.update(given if isinstance(given, list) else [] if given is None else [given])
    return frozenset(found)


def _prompts_in(path: Path) -> list[str]:
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the prompts in {path}: {error}", hint="give a text file in UTF-8") from None
    return [_prompt_in_json(path, k, line) for k, line in enumerate(lines)] if path.suffix == ".jsonl" else lines


def _prompt_in_json(path: Path, index: int, line: str) -> str:
    try:
        value = json.loads(line)
        value = value["prompt"] if isinstance(value, dict) else value
    except (ValueError, KeyError):
        value = None
    if not isinstance(value, str):
        raise DataError(f'{path}: prompt {index + 1} is not a JSON string, nor a record with a "prompt"')
    return value
