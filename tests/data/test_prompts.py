"""Prompts from a list or a file, in the chat template or without it, and the tokens that end an answer."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_tiny_tokenizer, tiny_config
from transformers import AutoTokenizer

from slideformer.data.prompts import decode_answer, encode_prompt, read_prompts, stop_ids
from slideformer.errors import DataError

TEMPLATE = "{% for m in messages %}w10 {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}w11{% endif %}"


def tokenizer(directory: Path, template: str | None = TEMPLATE) -> Any:
    return AutoTokenizer.from_pretrained(save_tiny_tokenizer(directory, template))


def test_prompts_of_a_list_and_of_files(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one\n\n two \n")
    (tmp_path / "a.jsonl").write_text('"one\\nline"\n{"prompt": "two", "id": 3}\n')
    assert read_prompts(["one", "two"]) == ["one", "two"]
    assert read_prompts(tmp_path / "a.txt") == ["one", " two "]
    assert read_prompts(tmp_path / "a.jsonl") == ["one\nline", "two"]


@pytest.mark.parametrize(
    ("content", "words"), [('{"text": "a"}\n', "prompt 1 is not a JSON string"), ('"a"\n3\n', "prompt 2 is not a JSON")]
)
def test_a_record_without_a_prompt_is_named(tmp_path: Path, content: str, words: str):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match=words):
        read_prompts(tmp_path / "a.jsonl")


def test_a_missing_file_and_an_empty_prompt_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="cannot read the prompts in"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(DataError, match="prompt 2 is empty"):
        read_prompts(["a", "  "])


def test_the_chat_template_is_used_where_there_is_one(tmp_path: Path):
    assert encode_prompt(tokenizer(tmp_path), "w5", raw=False) == [10, 5, 11]
    assert encode_prompt(tokenizer(tmp_path), "w5", raw=True) == [5]
    assert encode_prompt(tokenizer(tmp_path / "bare", None), "w5", raw=False) == [5]


def test_an_answer_is_text_without_special_tokens(tmp_path: Path):
    assert decode_answer(tokenizer(tmp_path), [5, 6, 2]) == "w5 w6"


def test_every_place_that_names_an_end_counts(tmp_path: Path):
    config, words = tiny_config("llama"), tokenizer(tmp_path)
    assert stop_ids(tmp_path, config, words) == {2}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    assert stop_ids(tmp_path, config, words) == {2, 7, 8}
    assert stop_ids(tmp_path / "elsewhere", tiny_config("llama", eos_token_id=9), None) == {9}
