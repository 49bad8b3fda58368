"""Files and directories that the `datasets` library reads."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from slideformer.data.hub import content_hash, is_for_datasets, open_dataset, read_rows
from slideformer.errors import DataError
from slideformer.settings.data import Source

CHAT: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
    {"messages": [{"role": "user", "content": "ho", "name": "eve"}], "note": "b"},
]


@pytest.fixture(autouse=True)
def arrow_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "arrow")


def rows(path: Path, **source: Any) -> list[tuple[str, dict[str, Any]]]:
    of = Source(path=path, **source)
    assert is_for_datasets(of)
    return [(record.place, record.fields) for record in read_rows(of, open_dataset(of))]


@pytest.mark.parametrize("content", [json.dumps(CHAT), "\n".join(map(json.dumps, CHAT))], ids=["list", "lines"])
def test_json(tmp_path: Path, content: str):
    file = tmp_path / "chat.json"
    file.write_text(content)
    (first, fields), (second, other) = rows(file)
    assert (first, second) == (f"{file}, row 1", f"{file}, row 2")
    assert fields == CHAT[0]  # no "name": null, which a template might ask for
    assert other["messages"] == CHAT[1]["messages"]


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t")])
def test_csv(tmp_path: Path, suffix: str, delimiter: str):
    file = tmp_path / f"pairs{suffix}"
    with file.open("w", newline="") as out:
        csv.writer(out, delimiter=delimiter).writerows([("prompt", "completion"), ("a, b", "c\nd")])
    assert rows(file) == [(f"{file}, row 1", {"prompt": "a, b", "completion": "c\nd"})]


def test_parquet(tmp_path: Path):
    file = tmp_path / "chat.parquet"
    Dataset.from_list(CHAT[:1]).to_parquet(file)
    assert [fields for _, fields in rows(file)] == CHAT[:1]


def test_a_directory_with_splits(tmp_path: Path):
    parts = DatasetDict({name: Dataset.from_list([{"text": name}] * 4) for name in ("train", "test")})
    for name, part in parts.items():
        part.to_parquet(tmp_path / f"set/{name}-00000-of-00001.parquet")
    assert [fields["text"] for _, fields in rows(tmp_path / "set")] == ["train"] * 4
    assert [fields["text"] for _, fields in rows(tmp_path / "set", split="test[:50%]")] == ["test"] * 2


def test_a_split_that_is_not_there_is_named(tmp_path: Path):
    Dataset.from_list([{"text": "a"}]).to_parquet(tmp_path / "set/train.parquet")
    with pytest.raises(DataError, match="split validation.*Unknown split") as caught:
        rows(tmp_path / "set", split="validation")
    assert "split" in caught.value.hint


def test_a_broken_or_missing_file_is_named(tmp_path: Path):
    file = tmp_path / "chat.parquet"
    with pytest.raises(DataError, match="chat.parquet: No such file"):
        rows(file)
    file.write_text("not parquet")
    with pytest.raises(DataError, match="cannot read .*chat.parquet"):
        rows(file)


def test_unknown_columns_name_their_row(tmp_path: Path):
    file = tmp_path / "a.csv"
    file.write_text("question,answer\na,b\n")
    with pytest.raises(DataError, match="a.csv, row 1: .*found: question, answer"):
        rows(file)


def test_jsonl_stays_with_its_own_reader(tmp_path: Path):
    here = tmp_path / "records"
    here.write_text("{}")
    assert not any(map(is_for_datasets, (Source(path=Path("a/b.jsonl")), Source(path=here))))
    assert not is_for_datasets(Source(path=Path("/not/here"))) and is_for_datasets(Source(path=Path("org/set-1.0")))


def test_the_hash_is_that_of_the_rows(tmp_path: Path):
    def hash_of(name: str, texts: list[str]) -> str:
        Dataset.from_list([{"text": text} for text in texts]).to_parquet(tmp_path / name)
        return content_hash(open_dataset(Source(path=tmp_path / name)))

    assert hash_of("a.parquet", ["x", "y"]) == hash_of("b.parquet", ["x", "y"])
    assert len({hash_of(f"{i}.parquet", texts) for i, texts in enumerate([["x", "y"], ["y", "x"], ["xy"]])}) == 3
