"""What a record is, told by its columns; ShareGPT's and Alpaca's become messages."""

from typing import Any, Literal

from slideformer.errors import DataError

RecordKind = Literal["tokenized", "messages", "completion", "text"]
Fields = dict[str, Any]

# The first kind whose columns are all there is the record's; a tokenized record may still carry its text.
COLUMNS: dict[RecordKind, tuple[str, ...]] = {
    "tokenized": ("input_ids",),
    "messages": ("messages",),
    "completion": ("prompt", "completion"),
    "text": ("text",),
}
ACCEPTED = (
    "input_ids (and labels), messages, conversations (ShareGPT), instruction and output (Alpaca), "
    "prompt and completion, or text"
)
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
}


def recognise(fields: Fields) -> tuple[RecordKind, Fields]:
    """The kind of a record and its fields as that kind names them.

    Raises:
        DataError: the columns are not known, or are not what they should be.
    """

    def has(*columns: str) -> bool:
        return all(fields.get(column) is not None for column in columns)

    kind: RecordKind | None = next((kind for kind, columns in COLUMNS.items() if has(*columns)), None)
    if kind == "tokenized" or kind == "messages":
        return kind, fields
    if has("conversations"):
        return "messages", _with_messages(fields, _from_sharegpt(fields["conversations"]))
    if has("instruction", "output"):
        return "messages", _with_messages(fields, _from_alpaca(fields))
    if kind is None:
        found = ", ".join(fields) or "none"
        raise DataError(f"the record's columns are not known (found: {found})", hint=f"give it {ACCEPTED}")
    return kind, fields


def _with_messages(fields: Fields, turns: list[Fields]) -> Fields:
    """The fields a conversation may have, with a `system` column as its first turn."""
    system = fields.get("system")
    messages = [{"role": "system", "content": system}, *turns] if system else turns
    return {"messages": messages, "tools": fields.get("tools")}


def _from_sharegpt(turns: Any) -> list[Fields]:
    """[{"from": "human", "value": "..."}, ...] -> messages; turns with role and content are taken as they are."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(
            "conversations is not a list of turns",
            hint='write [{"from": "human", "value": "..."}, {"from": "gpt", ...}]',
        )
    return [_from_sharegpt_turn(number, turn) for number, turn in enumerate(turns, start=1)]


def _from_sharegpt_turn(number: int, turn: Fields) -> Fields:
    if "from" not in turn:
        return turn
    role = SHAREGPT_ROLES.get(turn["from"]) if isinstance(turn["from"], str) else None
    if role is None:
        known = ", ".join(SHAREGPT_ROLES)
        raise DataError(f"turn {number} is from {turn['from']!r}", hint=f"use one of {known}, or write messages")
    return {"role": role, "content": turn.get("value")}


def _from_alpaca(fields: Fields) -> list[Fields]:
    """One user turn, the instruction with its input behind an empty line, and the answer; `history` goes before."""
    columns = {name: fields.get(name) or "" for name in ("instruction", "input", "output")}
    for name, value in columns.items():
        if not isinstance(value, str):
            raise DataError(f"{name} is not a text", hint=f"write {name} as one string")
    prompt = "\n\n".join(filter(None, (columns["instruction"], columns["input"])))
    turns = []
    for pair in fields.get("history") or []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError("history is not a list of pairs", hint='write [["question", "answer"], ...]')
        turns += _pair(*pair)
    return [*turns, *_pair(prompt, columns["output"])]


def _pair(question: Any, answer: Any) -> list[Fields]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
