"""A JSONL file -> records, one line at a time, each recognised by its columns."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from slideformer.errors import DataError

RecordKind = Literal["tokenized", "messages", "completion", "text"]

# The first kind whose columns are all there is the record's; a tokenized record may still carry its text.
COLUMNS: dict[RecordKind, tuple[str, ...]] = {
    "tokenized": ("input_ids",),
    "messages": ("messages",),
    "completion": ("prompt", "completion"),
    "text": ("text",),
}
ACCEPTED = "input_ids (and labels), messages, prompt and completion, or text"


@dataclass(frozen=True)
class Record:
    """One record as read.

    Attributes:
        index: position among the file's records, from 0.
        place: "file:line", for error messages.
    """

    index: int
    place: str
    kind: RecordKind
    fields: dict[str, Any]


def read_records(path: Path) -> Iterator[Record]:
    """The records of a JSONL file in order; blank lines are skipped.

    Raises:
        DataError: the file cannot be read or is empty, or a line is not a JSON object with known columns.
    """
    index = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _record(index, f"{path}:{number}", line)
                    index += 1
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint="give data.path a JSONL file") from None
    if index == 0:
        raise DataError(f"{path} holds no records", hint="give data.path a JSONL file with at least one record")


def _record(index: int, place: str, line: bytes) -> Record:
    try:
        fields = json.loads(line.decode("utf-8-sig"))
        if b"\\ud" in line.lower():  # half of a surrogate pair is JSON, but no text that can be tokenized
            json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeError:
        raise DataError(f"{place}: the line is not Unicode text", hint="save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: the line is not JSON ({error})", hint="write one JSON object a line") from None
    if not isinstance(fields, dict):
        raise DataError(f"{place}: the line is not a JSON object", hint="write one JSON object a line")
    for kind, columns in COLUMNS.items():
        if all(fields.get(column) is not None for column in columns):
            return Record(index, place, kind, fields)
    found = ", ".join(fields) or "none"
    raise DataError(f"{place}: the record's columns are not known (found: {found})", hint=f"give it {ACCEPTED}")
