"""JSONL in, records out, and file:line for everything that is not one."""

from pathlib import Path

import pytest

from slideformer.data.source import Malformed, read_records
from slideformer.errors import DataError


def write(path: Path, *lines: str) -> Path:
    file = path / "data.jsonl"
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ('{"messages": []}', "messages"),
        ('{"prompt": "a", "completion": "b"}', "completion"),
        ('{"text": "a", "id": 3}', "text"),
        ('{"input_ids": [1], "labels": [1]}', "tokenized"),
        ('{"text": "a", "input_ids": [1]}', "tokenized"),
        ('{"text": "a", "input_ids": null}', "text"),
    ],
)
def test_a_record_is_recognised_by_its_columns(tmp_path: Path, line: str, kind: str):
    (record,) = read_records(write(tmp_path, line))
    assert record.kind == kind


def test_blank_lines_count_as_lines_but_not_as_records(tmp_path: Path):
    file = write(tmp_path, '{"text": "é"}', "", '{"text": "b"}')
    assert [(record.index, record.place) for record in read_records(file)] == [(0, f"{file}:1"), (1, f"{file}:3")]


def test_a_byte_order_mark_is_ignored(tmp_path: Path):
    file = tmp_path / "data.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n')
    assert [record.fields for record in read_records(file)] == [{"text": "a"}]


def test_reading_is_line_by_line(tmp_path: Path):
    records = read_records(write(tmp_path, '{"text": "a"}', "{broken"))
    assert next(records).fields == {"text": "a"}
    with pytest.raises(DataError, match="data.jsonl:2"):
        next(records)


def test_bad_lines_may_be_left_out_counted_and_the_first_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = write(tmp_path, "{broken", '{"text": "a"}', "[]", "", '{"question": "b"}', '{"text": "c"}', "7")
    malformed = Malformed("skip")
    found = [(record.index, record.place) for record in read_records(file, malformed)]
    assert found == [(1, f"{file}:2"), (4, f"{file}:6")] and malformed.count == 4
    told = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in told] == [f"{file}:1", f"{file}:3", f"{file}:5"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "a"', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('["a"]', "not a JSON object"),
        ('{"question": "a", "answer": "b"}', "found: question, answer"),
        ('{"prompt": "a"}', "found: prompt"),
        ("{}", "found: none"),
    ],
)
def test_a_bad_line_names_file_line_and_remedy(tmp_path: Path, line: str, words: str):
    file = write(tmp_path, '{"text": "fine"}', line)
    with pytest.raises(DataError, match=words) as caught:
        list(read_records(file))
    assert caught.value.message.startswith(f"{file}:2: ") and caught.value.hint


@pytest.mark.parametrize("line", [b'{"text": "\xff"}', b'{"text": "\\ud83d"}', b'{"text": {"a": ["\\UD83D"]}}'])
def test_a_line_that_is_not_unicode(tmp_path: Path, line: bytes):
    file = tmp_path / "data.jsonl"
    file.write_bytes(line)
    with pytest.raises(DataError, match="data.jsonl:1: "):
        list(read_records(file))


def test_escaped_characters_are_read(tmp_path: Path):
    (record,) = read_records(write(tmp_path, r'{"text": "\ud83d\ude00"}'))
    assert record.fields == {"text": "😀"}


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file(tmp_path: Path, content: str):
    file = tmp_path / "data.jsonl"
    file.write_text(content)
    with pytest.raises(DataError, match="holds no records"):
        list(read_records(file))


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(DataError, match="No such file"):
        list(read_records(tmp_path / "none.jsonl"))
