"""Encoded records -> training examples of at most `max_length` tokens, and a count of what was left out."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from slideformer.data.chat import IGNORED, Tokens, encode
from slideformer.data.source import Record
from slideformer.errors import DataError

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

    def __str__(self) -> str:
        lines = [
            f"data: {self.kept:,} of {self.records:,} records, {self.tokens:,} tokens, {self.trained_tokens:,} trained"
        ]
        counts = {
            "truncated to max_length": self.truncated,
            "longer than max_length (dropped)": self.dropped_long,
            "without a trained token (dropped)": self.dropped_untrained,
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
) -> tuple[list[Example], DataReport]:
    """Encode `records`, shorten or drop the long ones, drop those with nothing to train.

    Args:
        tokenizer: None is enough for records that are tokenized already.
        vocab_size: rows of the model's embedding; every token id must be below it.

    Raises:
        DataError: a record cannot be used, or none is left to train on.
    """
    report = DataReport()
    examples = []
    for record in records:
        report.records += 1
        tokens = _shortened(_checked(encode(record, tokenizer), record.place, vocab_size), max_length, too_long, report)
        if tokens is not None:
            examples.append(Example(record.index, *(torch.tensor(column, dtype=torch.int32) for column in tokens)))
    if not examples:
        raise _nothing_left(report)
    return examples, report


def _checked(tokens: Tokens, place: str, vocab_size: int) -> Tokens:
    for token in (*tokens.input_ids, *(label for label in tokens.labels if label != IGNORED)):
        if not 0 <= token < vocab_size:
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
    return DataError(
        f"none of the {report.records} records can be trained on: {counts}",
        hint="raise max_length, set too_long: truncate, or check that the records hold answers",
    )
