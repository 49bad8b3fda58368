"""All sources of a run together, tokenized once."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from slideformer.data import load
from slideformer.data.load import Encoding, apply_chat_template, load_data
from slideformer.errors import DataError
from slideformer.settings.data import Data, Source

TEXTS = ["hello there", "how are you", "two plus two is four"]


def write(path: Path, texts: list[str]) -> Source:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Source(path=path)


@pytest.fixture
def encoding(tmp_path: Path) -> Encoding:
    return Encoding(64, "truncate", 320, "assistant", tmp_path / "cache")


@pytest.fixture
def tokenized(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that records were tokenized."""
    calls: list[int] = []
    make = load.make_examples

    def counting(*arguments, **settings):
        calls.append(1)
        return make(*arguments, **settings)

    monkeypatch.setattr(load, "make_examples", counting)
    return calls


def test_sources_stand_one_behind_the_other(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, encoding: Encoding):
    one, two = write(tmp_path / "1.jsonl", TEXTS[:1]), write(tmp_path / "2.jsonl", TEXTS[1:])
    data = load_data([one, two.model_copy(update={"weight": 2.0})], tokenizer, encoding)
    whole = load_data([write(tmp_path / "all.jsonl", TEXTS)], tokenizer, encoding)
    assert [e.input_ids.tolist() for e in data.examples] == [e.input_ids.tolist() for e in whole.examples]
    assert [e.index for e in data.examples] == [0, 1, 2]
    assert data.report == whole.report and [report.kept for report in data.reports] == [1, 2]
    assert data.mixture.draws == [1, 4]


def test_records_that_cannot_be_used_stop_the_run_or_are_left_out_and_counted(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, encoding: Encoding
):
    broken = tmp_path / "1.jsonl"
    lines = ['{"text": "hello"}', "{", '{"messages": "none"}', '{"input_ids": [999, 1]}', '{"text": "how are you"}']
    broken.write_text("\n".join(lines))
    sources = [Source(path=broken), write(tmp_path / "2.jsonl", TEXTS[:1])]
    with pytest.raises(DataError, match="1.jsonl:2: the line is not JSON"):
        load_data(sources, tokenizer, encoding)
    for _ in ("made", "from the cache"):
        data = load_data(sources, tokenizer, replace(encoding, on_error="skip"))
        assert [report.malformed for report in data.reports] == [3, 0] and data.report.records == 6
        assert [example.index for example in data.examples] == [0, 4, 5]
        assert "3 that cannot be used (left out)" in str(data.report)


def test_a_file_of_which_nothing_can_be_used_is_refused(tmp_path: Path, encoding: Encoding):
    (tmp_path / "1.jsonl").write_text("{\n[]\n")
    with pytest.raises(DataError, match="none of the 2 records can be trained on: .* 2 that cannot be used"):
        load_data([Source(path=tmp_path / "1.jsonl")], None, replace(encoding, on_error="skip"))


def test_data_is_tokenized_once(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, encoding: Encoding, tokenized: list[int]
):
    source = write(tmp_path / "a.jsonl", TEXTS)
    first, second = (load_data([source], tokenizer, encoding) for _ in range(2))
    write(tmp_path / "b.jsonl", TEXTS)
    load_data([Source(path=tmp_path / "b.jsonl")], tokenizer, encoding)  # the same content under another name
    assert tokenized == [1]
    assert first.report == second.report
    for one, two in zip(first.examples, second.examples, strict=True):
        assert one.index == two.index and one.input_ids.equal(two.input_ids) and one.labels.equal(two.labels)


def test_whatever_decides_the_tokens_decides_the_cache(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, encoding: Encoding, tokenized: list[int]
):
    source = write(tmp_path / "a.jsonl", TEXTS)
    changes = ({"max_length": 4}, {"too_long": "drop"}, {"train_on": "everything"}, {"vocab_size": 400})
    for changed in (encoding, *(replace(encoding, **change) for change in changes)):
        load_data([source], tokenizer, changed)
    tokenizer.chat_template = "{{ messages }}"
    load_data([source], tokenizer, encoding)
    load_data([write(tmp_path / "a.jsonl", TEXTS[:2])], tokenizer, encoding)
    assert len(tokenized) == 7


def test_without_a_directory_nothing_is_kept(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, encoding: Encoding):
    load_data([write(tmp_path / "a.jsonl", TEXTS)], tokenizer, replace(encoding, cache_dir=None))
    assert not (tmp_path / "cache").exists()


def test_a_failure_leaves_nothing_in_the_cache(tmp_path: Path, encoding: Encoding):
    with pytest.raises(DataError, match="no tokenizer"):
        load_data([write(tmp_path / "a.jsonl", TEXTS)], None, encoding)
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, encoding: Encoding):
    source = write(tmp_path / "a.jsonl", TEXTS)
    with pytest.raises(DataError, match="data.cache_dir: cannot write") as caught:
        load_data([source], tokenizer, replace(encoding, cache_dir=source.path / "below"))
    assert "null" in caught.value.hint


def test_a_missing_file_is_named(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, encoding: Encoding):
    with pytest.raises(DataError, match="none.jsonl: No such file"):
        load_data([Source(path=tmp_path / "none.jsonl")], tokenizer, encoding)


def test_a_template_file_replaces_the_tokenizers(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    file = tmp_path / "chat.jinja"
    file.write_text("{{ messages[0]['content'] }}")
    apply_chat_template(Data(path=Path("x"), chat_template=file), tokenizer)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == "hello"
    with pytest.raises(DataError, match="no tokenizer"):
        apply_chat_template(Data(path=Path("x"), chat_template=file), None)
    with pytest.raises(DataError, match="No such file"):
        apply_chat_template(Data(path=Path("x"), chat_template=tmp_path / "none.jinja"), tokenizer)
