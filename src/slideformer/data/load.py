"""The settings under `data` -> examples of all sources, tokenized once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from slideformer.data.cache import cache_key, cached, file_hash
from slideformer.data.examples import DataReport, Examples, make_examples
from slideformer.data.hub import content_hash, is_for_datasets, open_dataset, read_rows
from slideformer.data.mixture import Mixture
from slideformer.data.source import Malformed, Record, read_records
from slideformer.errors import DataError
from slideformer.settings.data import Data, OnError, Source, TrainOn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoding:
    """How records become examples.

    Attributes:
        max_length: tokens of the longest example.
        too_long: what happens to longer records.
        vocab_size: rows of the model's embedding.
        train_on: what the loss is taken on.
        cache_dir: where the result is kept; None: nowhere.
        on_error: "stop" at a record that cannot be used, or "skip" it.
    """

    max_length: int
    too_long: Literal["truncate", "drop"]
    vocab_size: int
    train_on: TrainOn
    cache_dir: Path | None
    on_error: OnError = "stop"


@dataclass(frozen=True)
class LoadedData:
    """The examples of all sources, one source behind the other.

    Attributes:
        reports: one for each source.
        mixture: how many examples each source has, and its weight.
    """

    examples: Examples
    reports: list[DataReport]
    mixture: Mixture

    @property
    def report(self) -> DataReport:
        """The counts of all sources together."""
        return sum(self.reports[1:], self.reports[0])


def load_data(sources: Sequence[Source], tokenizer: "PreTrainedTokenizerBase | None", encoding: Encoding) -> LoadedData:
    """Read and tokenize every source, or find it in the cache.

    Raises:
        DataError: a source cannot be read, or a record cannot be used; names the place.
    """
    parts = [_load_source(source, tokenizer, encoding) for source in sources]
    examples, reports = [part for part, _ in parts], [report for _, report in parts]
    firsts = [sum(report.records for report in reports[:k]) for k in range(len(reports))]
    mixture = Mixture([len(part) for part in examples], [source.weight for source in sources])
    return LoadedData(Examples.joined(examples, firsts), reports, mixture)


def apply_chat_template(data: Data, tokenizer: "PreTrainedTokenizerBase | None") -> None:
    """Put the template of `data.chat_template`, if there is one, in the tokenizer's place.

    Raises:
        DataError: the file cannot be read, or there is no tokenizer.
    """
    if data.chat_template is None:
        return
    if tokenizer is None:
        raise DataError("data.chat_template: the model has no tokenizer", hint="remove data.chat_template")
    try:
        tokenizer.chat_template = data.chat_template.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read data.chat_template: {error}", hint="give the path of a Jinja file") from None


def _load_source(
    source: Source, tokenizer: "PreTrainedTokenizerBase | None", encoding: Encoding
) -> tuple[Examples, DataReport]:
    dataset = open_dataset(source) if is_for_datasets(source) else None

    def records(malformed: Malformed) -> Iterator[Record]:
        return read_records(source.path, malformed) if dataset is None else read_rows(source, dataset, malformed)

    def make() -> tuple[Examples, DataReport]:
        malformed = Malformed(encoding.on_error)
        return make_examples(
            records(malformed),
            tokenizer,
            max_length=encoding.max_length,
            too_long=encoding.too_long,
            vocab_size=encoding.vocab_size,
            train_on=encoding.train_on,
            malformed=malformed,
        )

    def key() -> str:
        settings = {name: value for name, value in vars(encoding).items() if name != "cache_dir"}
        content = _hash_of_file(source.path) if dataset is None else content_hash(dataset)
        return cache_key(content, tokenizer, settings)

    return cached(encoding.cache_dir, key, make)


def _hash_of_file(path: Path) -> str:
    try:
        return file_hash(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint="give data.path a JSONL file") from None
