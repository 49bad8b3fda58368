"""Records of TRL's data set formats -> tokens and labels, the same ones that TRL's SFTTrainer makes of them."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slideformer.errors import ConfigError, DataError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
Record = dict[str, Any]


@dataclass(frozen=True)
class SftEncoder:
    """One record -> {"input_ids", "labels"}.

    A prompt with its completion is trained on the completion, everything else on all of it, unless told otherwise.

    Attributes:
        tokenizer: its chat template renders conversations; its end-of-sequence token ends texts.
        text_field: the column of plain text.
        completion_only: None: where there is a prompt and a completion.
        assistant_only: of conversations, train only what the template marks as generated.
        chat_template: the template with these marks; None: the tokenizer's own.
    """

    tokenizer: "PreTrainedTokenizerBase"
    text_field: str = "text"
    completion_only: bool | None = None
    assistant_only: bool = False
    chat_template: str | None = None

    def __call__(self, record: Record) -> dict[str, list[int]]:
        tokens = record if "input_ids" in record else self._tokenized(_as_messages(record))
        masks = [tokens[name] for name in self._masks_that_count(record) if tokens.get(name) is not None]
        labels = tokens.get("labels")
        if labels is None:
            rows = zip(tokens["input_ids"], *masks, strict=True)
            labels = [token if all(on) else IGNORED for token, *on in rows]
        return {"input_ids": list(tokens["input_ids"]), "labels": list(labels)}

    def _masks_that_count(self, record: Record) -> list[str]:
        completion = self.completion_only
        completion = "prompt" in record and "completion" in record if completion is None else completion
        return [*(["completion_mask"] if completion else []), "assistant_masks"]

    def _tokenized(self, record: Record) -> Record:
        if "prompt" in record and "completion" in record:
            return self._prompt_and_completion(record)
        if "messages" in record:
            return dict(self._conversation(record["messages"], record, mask=self.assistant_only))
        if self.assistant_only:
            raise ConfigError(
                "assistant_only_loss: the records are no conversations", "give them messages, or unset it"
            )
        if self.text_field not in record:
            found = ", ".join(record)
            raise DataError(
                f"train_dataset has the columns {found}", "give it messages, prompt and completion, or text"
            )
        return {"input_ids": self._text(self._ended(record[self.text_field]))}

    def _prompt_and_completion(self, record: Record) -> Record:
        prompt, completion = record["prompt"], record["completion"]
        if isinstance(prompt, list):
            before = self._conversation(prompt, record, add_generation_prompt=True)["input_ids"]
            whole = dict(self._conversation([*prompt, *completion], record, mask=self.assistant_only))
        else:
            before = self._text(prompt)
            whole = {"input_ids": self._text(prompt + self._ended(completion))}
        common = _common_start(before, whole["input_ids"])
        return {**whole, "completion_mask": [0] * common + [1] * (len(whole["input_ids"]) - common)}

    def _conversation(self, messages: Any, record: Record, mask: bool = False, **more: Any) -> Record:
        tools = record.get("tools")
        rendered: Any = self.tokenizer.apply_chat_template(
            messages,
            tools=json.loads(tools) if isinstance(tools, str) else tools,
            chat_template=self.chat_template,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=mask,
            **more,
            **(record.get("chat_template_kwargs") or {}),
        )
        if mask and 1 not in rendered["assistant_masks"]:
            raise DataError("a conversation has no assistant tokens", "give it an answer, or unset assistant_only_loss")
        return {name: rendered[name] for name in ("input_ids", "assistant_masks") if name in rendered}

    def _text(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])  # type: ignore[arg-type]  # of one text: a list of ints

    def _ended(self, text: str) -> str:
        end: Any = self.tokenizer.eos_token or ""
        return text if text.endswith(end) else text + end


def template_with_marks(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The chat template that marks what the assistant generates: None if the tokenizer's does, else TRL's own for it.

    Raises:
        ConfigError: neither has one.
    """
    if GENERATION_MARK.search(tokenizer.get_chat_template()):
        return None
    try:
        from trl.chat_template_utils import get_training_chat_template

        return get_training_chat_template(tokenizer)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            "assistant_only_loss: the chat template does not mark what the assistant generates",
            "put {% generation %} around answers in the template, or give prompt and completion",
        ) from error


def encode_dataset(
    dataset: "Dataset", encoder: SftEncoder, formatting: Callable[[Record], str] | None, processes: int | None
) -> "Dataset":
    """The data set as `input_ids` and `labels` only.

    Args:
        formatting: makes the text of a record that is not tokenized.
    """

    def encode(record: Record) -> dict[str, list[int]]:
        record = {name: value for name, value in record.items() if value is not None}
        if formatting is not None and "input_ids" not in record:
            record = {encoder.text_field: formatting(record)}
        return encoder(record)

    return dataset.map(encode, remove_columns=dataset.column_names, num_proc=processes, desc="Tokenizing")


def _as_messages(record: Record) -> Record:
    """`conversations`, with from and value or role and content, as `messages`."""
    turns = record.get("conversations")
    if not isinstance(turns, list):
        return record
    names = {"from": "role", "value": "content"}
    return {**record, "messages": [{names.get(key, key): value for key, value in turn.items()} for turn in turns]}


def _common_start(one: list[int], other: list[int]) -> int:
    """How many tokens are equal at the start; a template may render a prompt alone a little differently."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
