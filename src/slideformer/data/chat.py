"""Records -> token ids and labels: what of a record the loss is taken on."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from slideformer.data.source import Record
from slideformer.errors import DataError
from slideformer.settings.data import TrainOn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label of a token that is not trained, as in transformers
Fields = dict[str, Any]
Turns = list[dict[str, Any]]
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Tokens(NamedTuple):
    """A record's tokens; `labels` repeats the ids that are trained and holds -100 elsewhere."""

    input_ids: list[int]
    labels: list[int]


def encode(record: Record, tokenizer: "PreTrainedTokenizerBase | None", train_on: TrainOn = "assistant") -> Tokens:
    """Turn one record into tokens.

    Loss is taken on the assistant's turns of `messages`, on the `completion` after a `prompt`, and on all of a
    `text`; the last two end with the end-of-sequence token. Tokenized records are used exactly as given.

    Args:
        train_on: "last" takes only the last assistant turn, "everything" also what is not the assistant's.

    Raises:
        DataError: the record cannot be turned into tokens; names file and line.
    """
    try:
        if record.kind == "tokenized":
            return _tokenized(record.fields)
        if tokenizer is None:
            raise DataError("the model has no tokenizer", hint="give records with input_ids")
        of_kind = {"messages": _conversation, "completion": _completion, "text": _text}
        return of_kind[record.kind](record.fields, tokenizer, train_on)
    except DataError as error:
        raise DataError(f"{record.place}: {error.message}", hint=error.hint) from error.__cause__


def _tokenized(fields: Fields) -> Tokens:
    input_ids, labels = fields["input_ids"], fields.get("labels")
    labels = input_ids if labels is None else labels
    for name, column in (("input_ids", input_ids), ("labels", labels)):
        if not isinstance(column, list) or not all(type(token) is int for token in column):
            raise DataError(f"{name} is not a list of whole numbers", hint="tokenize the record again")
    if len(labels) != len(input_ids):
        lengths = f"{len(input_ids)} input_ids but {len(labels)} labels"
        raise DataError(lengths, hint="give each token one label, -100 where it is not trained")
    return Tokens(input_ids, labels)


def _text(fields: Fields, tokenizer: "PreTrainedTokenizerBase", _: TrainOn) -> Tokens:
    text = _string(fields, "text")
    return _ended(_spans_to_tokens(tokenizer, text, [(0, len(text))], add_special_tokens=True), tokenizer)


def _completion(fields: Fields, tokenizer: "PreTrainedTokenizerBase", train_on: TrainOn) -> Tokens:
    prompt, completion = _string(fields, "prompt"), _string(fields, "completion")
    text = prompt + completion
    trained = [(0 if train_on == "everything" else len(prompt), len(text))]
    return _ended(_spans_to_tokens(tokenizer, text, trained, add_special_tokens=True), tokenizer)


def _conversation(fields: Fields, tokenizer: "PreTrainedTokenizerBase", train_on: TrainOn) -> Tokens:
    messages, tools = _checked_messages(fields["messages"]), fields.get("tools")
    if not tokenizer.chat_template:
        raise DataError("the tokenizer has no chat template", hint="give prompt/completion records")
    try:
        if train_on == "everything":
            text = _rendered(tokenizer, messages, tools)
            trained = [(0, len(text))]
        elif GENERATION_MARK.search(tokenizer.get_chat_template(tools=tools)):
            return _by_generation_marks(tokenizer, messages, tools, train_on)
        else:
            text, trained = _assistant_spans(tokenizer, messages, tools, train_on)
    except DataError:
        raise
    except Exception as error:  # templates are programs and raise what they like
        message = f"the chat template refuses the conversation: {error}"
        raise DataError(message, hint="check its roles and their order") from error
    return _spans_to_tokens(tokenizer, text, trained, add_special_tokens=False)


def _by_generation_marks(
    tokenizer: "PreTrainedTokenizerBase", messages: Turns, tools: Any, train_on: TrainOn
) -> Tokens:
    marked: Any = tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    mask = list(marked["assistant_masks"])
    if train_on == "last" and 1 in mask:
        end = len(mask) - mask[::-1].index(1)
        start = end - [*mask[:end][::-1], 0].index(0)  # of the last run of ones
        mask[:start] = [0] * start
    return _masked(marked["input_ids"], mask)


def _assistant_spans(
    tokenizer: "PreTrainedTokenizerBase", messages: Turns, tools: Any, train_on: TrainOn
) -> tuple[str, list[tuple[int, int]]]:
    """The conversation as text, and the (start, stop) characters that the assistant wrote.

    A turn is what the template adds to the prompt for it. That holds only if earlier text stays as it was, so each
    part is checked to be a beginning of the whole.
    """
    whole = _rendered(tokenizer, messages, tools)
    turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
    spans = []
    for turn in turns[-1:] if train_on == "last" else turns:
        before = _rendered(tokenizer, messages[:turn], tools, prompt=True)
        through = whole if turn + 1 == len(messages) else _rendered(tokenizer, messages[: turn + 1], tools)
        if not (whole.startswith(through) and through.startswith(before)):
            raise DataError(
                f"the chat template rewrites text around message {turn + 1}, so its answer cannot be told apart",
                hint="mark answers in the template with {% generation %}, set data.train_on: last, "
                "or give prompt/completion records",
            )
        spans.append((len(before), len(through)))
    return whole, spans


def _rendered(tokenizer: "PreTrainedTokenizerBase", messages: Turns, tools: Any, prompt: bool = False) -> str:
    text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=prompt)
    assert isinstance(text, str)
    return text


def _spans_to_tokens(
    tokenizer: "PreTrainedTokenizerBase", text: str, trained: Sequence[tuple[int, int]], add_special_tokens: bool
) -> Tokens:
    """Tokenize `text` once; a token is trained when any of its characters lies in a `trained` span.

    A token may cross the border, such as " four" after a prompt that ends with a space: it is part of the answer.
    """
    if not tokenizer.is_fast:
        raise DataError("the tokenizer cannot say where its tokens are in the text", hint="give records with input_ids")
    encoding = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, verbose=False)
    mask = bytearray(len(text))
    for start, stop in trained:
        mask[start:stop] = b"\x01" * (stop - start)
    offsets: Any = encoding["offset_mapping"]
    # Tokens the tokenizer adds by itself, such as <s>, have no characters.
    return _masked(encoding["input_ids"], [any(mask[start:stop]) for start, stop in offsets])


def _masked(input_ids: Any, mask: Sequence[int]) -> Tokens:
    return Tokens(list(input_ids), [token if on else IGNORED for token, on in zip(input_ids, mask, strict=True)])


def _ended(tokens: Tokens, tokenizer: "PreTrainedTokenizerBase") -> Tokens:
    """The same with one trained end-of-sequence token at the end."""
    end: Any = tokenizer.eos_token_id
    if end is None:
        return tokens
    input_ids, labels = tokens
    if input_ids and input_ids[-1] == end:
        return Tokens(input_ids, [*labels[:-1], end])
    return Tokens([*input_ids, end], [*labels, end])


def _string(fields: Fields, column: str) -> str:
    if not isinstance(fields[column], str):
        raise DataError(f"{column} is not a text", hint=f"write {column} as one string")
    return fields[column]


def _checked_messages(messages: Any) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise DataError("messages is not a list of turns", hint='write [{"role": "user", "content": "..."}, ...]')
    for number, message in enumerate(messages, start=1):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise DataError(f"message {number} has the role {role!r}", hint=f"use one of {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str | list) and not message.get("tool_calls"):
            raise DataError(f"message {number} has no content", hint="give it a content text")
    return messages
