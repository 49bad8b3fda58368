"""Encoded records -> training examples of at most `max_length` tokens, and a count of what was left out."""

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from slideformer.data.chat import IGNORED, Tokens, encode
from slideformer.data.source import Malformed, Record
from slideformer.errors import DataError
from slideformer.settings.data import TrainOn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Example:
    """One sequence to train on.

    Attributes:
        index: the record's number in its source, from 0.
        input_ids: [T] int32 (half of int64: a whole data set stays in memory).
        labels: [T] int32; `labels[t]` is what position t - 1 must predict, -100 where nothing is trained.
    """

    index: int
    input_ids: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Examples(Sequence[Example]):
    """Many examples in four flat tensors, so that a million of them are not two million small ones.

    Attributes:
        input_ids, labels: [tokens] int32, one example behind the other.
        bounds: [examples + 1] int64; example i is `bounds[i] : bounds[i + 1]`.
        indices: [examples] int64, the record number of each.
    """

    input_ids: Tensor
    labels: Tensor
    bounds: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Example:  # type: ignore[override]  # no slices: nobody asks for them
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        part = slice(int(self.bounds[i]), int(self.bounds[i + 1]))
        return Example(int(self.indices[i]), self.input_ids[part], self.labels[part])

    @property
    def lengths(self) -> Tensor:
        """[examples] int64: tokens of each."""
        return self.bounds.diff()

    @staticmethod
    def joined(parts: "Sequence[Examples]", first_indices: Sequence[int]) -> "Examples":
        """All examples of `parts`; the record numbers of part k are counted from `first_indices[k]`."""
        if len(parts) == 1:
            return parts[0]
        return Examples(
            torch.cat([part.input_ids for part in parts]),
            torch.cat([part.labels for part in parts]),
            torch.cat([torch.zeros(1, dtype=torch.int64), *(part.lengths for part in parts)]).cumsum(0),
            torch.cat([part.indices + first for part, first in zip(parts, first_indices, strict=True)]),
        )


def fingerprint(examples: Iterable[Example]) -> str:
    """SHA-256 of every token and label, in order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(len(example.input_ids).to_bytes(8, "little"))
        digest.update(example.input_ids.numpy().tobytes() + example.labels.numpy().tobytes())
    return digest.hexdigest()


@dataclass
class DataReport:
    """How many records became examples, and why others did not."""

    records: int = 0
    kept: int = 0
    truncated: int = 0
    dropped_long: int = 0
    dropped_untrained: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    malformed: int = 0

    def __add__(self, other: "DataReport") -> "DataReport":
        return DataReport(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __str__(self) -> str:
        lines = [
            f"data: {self.kept:,} of {self.records:,} records, {self.tokens:,} tokens, {self.trained_tokens:,} trained"
        ]
        counts = {
            "truncated to max_length": self.truncated,
            "longer than max_length (dropped)": self.dropped_long,
            "without a trained token (dropped)": self.dropped_untrained,
            "that cannot be used (left out)": self.malformed,
        }
        if any(counts.values()):
            lines.append("      " + ", ".join(f"{count:,} {what}" for what, count in counts.items() if count))
        return "\n".join(lines)


def make_examples(
    records: Iterable[Record],
    tokenizer: "PreTrainedTokenizerBase | None",
    *,
    max_length: int,
    too_long: Literal["truncate", "drop"],
    vocab_size: int,
    train_on: TrainOn = "assistant",
    malformed: Malformed | None = None,
) -> tuple[Examples, DataReport]:
    """Encode `records`, shorten or drop the long ones, drop those with nothing to train.

    Args:
        tokenizer: None is enough for records that are tokenized already.
        vocab_size: rows of the model's embedding; every token id must be below it.
        train_on: what the loss is taken on, as `encode` says.
        malformed: told of records that cannot be used, and has counted what `records` left out; None: they raise.

    Raises:
        DataError: a record cannot be used, or none is left to train on.
    """
    report, malformed = DataReport(), malformed or Malformed()

    def kept() -> Iterator[tuple[int, Tokens]]:
        for record in records:
            try:
                tokens = _checked(encode(record, tokenizer, train_on), record.place, vocab_size)
            except DataError as error:
                malformed.meet(error)
                continue
            report.records += 1
            tokens = _shortened(tokens, max_length, too_long, report)
            if tokens is not None:
                yield record.index, tokens

    examples = _flat(kept())
    report.malformed = malformed.count
    report.records += malformed.count
    if not len(examples):
        raise _nothing_left(report)
    return examples, report


def _flat(encoded: Iterable[tuple[int, Tokens]]) -> Examples:
    input_ids, labels, bounds, indices = array("i"), array("i"), array("q", [0]), array("q")
    for index, tokens in encoded:
        input_ids.extend(tokens.input_ids)
        labels.extend(tokens.labels)
        bounds.append(len(input_ids))
        indices.append(index)
    columns = ((input_ids, np.int32), (labels, np.int32), (bounds, np.int64), (indices, np.int64))
    return Examples(*(torch.from_numpy(np.frombuffer(column, dtype).copy()) for column, dtype in columns))


def _checked(tokens: Tokens, place: str, vocab_size: int) -> Tokens:
    trained = [label for label in tokens.labels if label != IGNORED]
    lowest, highest = min(tokens.input_ids + trained, default=0), max(tokens.input_ids + trained, default=0)
    if lowest < 0 or highest >= vocab_size:
        token = lowest if lowest < 0 else highest
        message = f"{place}: token id {token} is outside the model's vocabulary of {vocab_size}"
        raise DataError(message, hint="use the tokenizer that belongs to the model")
    return tokens


def _shortened(
    tokens: Tokens, max_length: int, too_long: Literal["truncate", "drop"], report: DataReport
) -> Tokens | None:
    """At most `max_length` tokens, counted in `report`; None when the record is dropped."""
    is_long = len(tokens.input_ids) > max_length
    if is_long and too_long == "drop":
        report.dropped_long += 1
        return None
    tokens = Tokens(tokens.input_ids[:max_length], tokens.labels[:max_length])
    trained = sum(label != IGNORED for label in tokens.labels[1:])  # nothing predicts the first token
    if not trained:
        report.dropped_untrained += 1
        return None
    report.kept += 1
    report.truncated += is_long
    report.tokens += len(tokens.input_ids)
    report.trained_tokens += trained
    return tokens


def _nothing_left(report: DataReport) -> DataError:
    counts = f"{report.dropped_long} longer than max_length, {report.dropped_untrained} without a trained token"
    counts += f", {report.malformed} that cannot be used" if report.malformed else ""
    return DataError(
        f"none of the {report.records} records can be trained on: {counts}",
        hint="raise max_length, set too_long: truncate, or check that the records hold answers",
    )
