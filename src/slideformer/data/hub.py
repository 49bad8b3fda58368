"""Everything but JSONL, through the `datasets` library: JSON, CSV and Parquet files, directories, the hub."""

import hashlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from slideformer.data.source import Malformed, Record, make_record
from slideformer.errors import DataError
from slideformer.settings.data import Source

if TYPE_CHECKING:
    from datasets import Dataset

BUILDERS = {".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_for_datasets(source: Source) -> bool:
    """Whether `datasets` reads this source; JSONL, and what cannot be told apart from it, it does not."""
    path = source.path
    if path.is_dir() or path.suffix.lower() in BUILDERS:
        return True
    return not path.exists() and path.suffix != ".jsonl" and bool(HUB_ID.fullmatch(str(path)))


def open_dataset(source: Source) -> "Dataset":
    """The rows of a source, as a memory-mapped Arrow table.

    Raises:
        DataError: the file, directory or repository cannot be read, or has no such split.
    """
    from datasets import load_dataset

    path = source.path
    arguments: dict[str, Any] = {}
    builder = BUILDERS.get(path.suffix.lower()) if not path.is_dir() else None
    if builder and not path.is_file():
        raise DataError(f"cannot read {path}: No such file", hint="check data.path")
    if builder:
        arguments = {"data_files": str(path), **({"sep": "\t"} if path.suffix.lower() == ".tsv" else {})}
    try:
        loaded: Any = load_dataset(
            builder or str(path), source.name, split=source.split, revision=source.revision, **arguments
        )
    except Exception as error:  # a missing split, a gated repository, a broken file: it raises many kinds
        reason = " ".join(str(error.__cause__ or error).split())
        raise DataError(f"cannot read {path} (split {source.split}): {reason}", hint=_remedy(source)) from error
    if not len(loaded):
        raise DataError(f"{path} (split {source.split}) holds no records", hint="choose another split")
    return loaded


def read_rows(source: Source, dataset: "Dataset", malformed: Malformed | None = None) -> Iterator[Record]:
    """The rows in order, without those that `malformed` lets pass (None: none); `place` counts them from 1.

    Raises:
        DataError: a row's columns are not known.
    """
    malformed = malformed or Malformed()
    for index, row in enumerate(dataset):
        try:
            record = make_record(index, f"{source.path}, row {index + 1}", _without_nulls(row))
        except DataError as error:
            malformed.meet(error)
        else:
            yield record


def content_hash(dataset: "Dataset") -> str:
    """A hash of the rows themselves, whatever file or revision they came from."""
    digest = hashlib.sha256(str(dataset.features).encode())
    for batch in dataset.with_format("arrow").iter(batch_size=4096):
        for part in batch.combine_chunks().to_batches():  # type: ignore[union-attr]  # a pyarrow.Table
            digest.update(part.serialize())
    return digest.hexdigest()


def _without_nulls(value: Any) -> Any:
    """A column that a row lacks is a null in Arrow, also inside turns; templates ask whether a key is there."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _remedy(source: Source) -> str:
    if source.path.exists():
        return "check that the file is whole and that the split exists"
    return "check spelling, split, revision and network; for a private or gated data set: hf auth login"
