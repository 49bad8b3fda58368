"""Records -> examples: what is kept, shortened, dropped, and how it is counted."""

import pytest
import torch

from slideformer.data.examples import make_examples
from slideformer.data.source import Record
from slideformer.errors import DataError


def records(*columns: dict[str, list[int]]) -> list[Record]:
    return [Record(i, f"data.jsonl:{i + 1}", "tokenized", fields) for i, fields in enumerate(columns)]


LONG = {"input_ids": [1, 2, 3, 4, 5, 6]}
SHORT = {"input_ids": [7, 8], "labels": [-100, 8]}
UNTRAINED = {"input_ids": [1, 2, 3], "labels": [1, -100, -100]}  # the first token has nothing to predict it


def test_long_records_are_truncated_and_counted():
    examples, report = make_examples(records(LONG, SHORT), None, max_length=4, too_long="truncate", vocab_size=10)
    assert [example.input_ids.tolist() for example in examples] == [[1, 2, 3, 4], [7, 8]]
    assert [example.labels.tolist() for example in examples] == [[1, 2, 3, 4], [-100, 8]]
    assert (report.kept, report.truncated, report.dropped_long) == (2, 1, 0)
    assert (report.tokens, report.trained_tokens) == (6, 4)
    assert "1 truncated" in str(report)


def test_long_records_are_dropped_and_counted():
    examples, report = make_examples(records(LONG, SHORT), None, max_length=4, too_long="drop", vocab_size=10)
    assert [example.index for example in examples] == [1]
    assert (report.records, report.kept, report.truncated, report.dropped_long) == (2, 1, 0, 1)
    assert "1 longer than max_length (dropped)" in str(report)


def test_max_length_itself_is_not_too_long():
    _, report = make_examples(records(LONG), None, max_length=6, too_long="drop", vocab_size=10)
    assert (report.kept, report.truncated) == (1, 0)
    assert len(str(report).splitlines()) == 1


def test_records_with_nothing_to_train_are_dropped_and_counted():
    cut = {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, -100, -100, -100, 5]}
    examples, report = make_examples(
        records(UNTRAINED, SHORT, cut), None, max_length=4, too_long="truncate", vocab_size=10
    )
    assert [example.index for example in examples] == [1]
    assert (report.dropped_untrained, report.truncated) == (2, 0)


def test_examples_are_int32():
    examples, _ = make_examples(records(SHORT), None, max_length=4, too_long="truncate", vocab_size=10)
    assert examples[0].input_ids.dtype == examples[0].labels.dtype == torch.int32


def test_nothing_left_says_why():
    with pytest.raises(DataError, match="2 records .* 1 longer than max_length, 1 without a trained token") as caught:
        make_examples(records(LONG, UNTRAINED), None, max_length=4, too_long="drop", vocab_size=10)
    assert "max_length" in caught.value.hint


@pytest.mark.parametrize(
    "fields", [{"input_ids": [1, 10]}, {"input_ids": [-1, 2]}, {"input_ids": [1, 2], "labels": [1, 10]}]
)
def test_a_token_outside_the_vocabulary_names_its_line(fields: dict[str, list[int]]):
    with pytest.raises(DataError, match="data.jsonl:2: token id .* outside the model's vocabulary of 10"):
        make_examples(records(SHORT, fields), None, max_length=4, too_long="truncate", vocab_size=10)
