"""A JSONL file -> records, one line at a time, each recognised by its columns."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slideformer.data.formats import RecordKind, recognise
from slideformer.errors import DataError
from slideformer.settings.data import OnError


@dataclass(frozen=True)
class Record:
    """One record as read.

    Attributes:
        index: position among the file's records, from 0.
        place: "file:line", or "file, row number", for error messages.
    """

    index: int
    place: str
    kind: RecordKind
    fields: dict[str, Any]


class Malformed:
    """What becomes of a record that cannot be used: it ends the run, or it is counted and the first ones are told.

    Args:
        on_error: "stop" or "skip".
    """

    TOLD = 3

    def __init__(self, on_error: OnError = "stop"):
        self._stops = on_error == "stop"
        self.count = 0

    def meet(self, error: DataError) -> None:
        """Raises `error`, or counts it."""
        if self._stops:
            raise error
        self.count += 1
        if self.count <= self.TOLD:
            print(f"left out: {error.message}")


def read_records(path: Path, malformed: Malformed | None = None) -> Iterator[Record]:
    """The records of a JSONL file in order; blank lines are skipped, and what `malformed` lets pass (None: nothing).

    Raises:
        DataError: the file cannot be read or is empty, or a line is not a JSON object with known columns.
    """
    index, malformed = 0, malformed or Malformed()
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    place = f"{path}:{number}"
                    record = make_record(index, place, _parsed(place, line))
                except DataError as error:
                    malformed.meet(error)
                else:
                    yield record
                index += 1
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint="give data.path a JSONL file") from None
    if index == 0:
        raise DataError(f"{path} holds no records", hint="give data.path a JSONL file with at least one record")


def make_record(index: int, place: str, fields: dict[str, Any]) -> Record:
    """Recognise a record; what is wrong with it is told with its place."""
    try:
        return Record(index, place, *recognise(fields))
    except DataError as error:
        raise DataError(f"{place}: {error.message}", hint=error.hint) from None


def _parsed(place: str, line: bytes) -> dict[str, Any]:
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
    return fields
