"""The same tokens and labels as TRL's own trainer makes."""

from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from slideformer.errors import ConfigError, DataError
from slideformer.integrations.sft_data import SftEncoder, encode_dataset, template_with_marks

TURNS = [
    {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"},
    {"role": "user", "content": "2+2"}, {"role": "assistant", "content": "four"},
]  # fmt: skip
FORMATS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "text": ([{"text": "some words"}, {"text": "with an end<end>"}], {}),
    "another column": ([{"story": "some words"}], {"dataset_text_field": "story"}),
    "completion": ([{"prompt": "2+2=", "completion": "4"}], {}),
    "prompt too": ([{"prompt": "2+2=", "completion": "4"}], {"completion_only_loss": False}),
    "chat": ([{"messages": TURNS}, {"messages": TURNS[:2]}], {}),
    "answers only": ([{"messages": TURNS}, {"messages": TURNS[:2]}], {"assistant_only_loss": True}),
    "chat completion": ([{"prompt": TURNS[:3], "completion": TURNS[3:]}], {}),
    "both masks": ([{"prompt": TURNS[:3], "completion": TURNS[3:]}], {"assistant_only_loss": True}),
    "from and value": ([{"conversations": [{"from": t["role"], "value": t["content"]} for t in TURNS]}], {}),
    "tokens": ([{"input_ids": [7, 8, 9, 10]}], {}),
    "tokens and labels": ([{"input_ids": [7, 8, 9], "labels": [-100, 8, 9]}], {}),
    "tokens and a mask that is not asked for": ([{"input_ids": [7, 8, 9], "completion_mask": [0, 1, 1]}], {}),
    "tokens and mask": ([{"input_ids": [7, 8, 9], "completion_mask": [0, 1, 1]}], {"completion_only_loss": True}),
}


def encoder_for(model: str, settings: dict[str, Any]) -> SftEncoder:
    names = {
        "dataset_text_field": "text_field",
        "completion_only_loss": "completion_only",
        "assistant_only_loss": "assistant_only",
    }
    return SftEncoder(AutoTokenizer.from_pretrained(model), **{names[key]: value for key, value in settings.items()})


@pytest.mark.parametrize("name", FORMATS)
def test_it_is_what_trl_trains_on(name: str, model: str, tmp_path: Any):
    trl = pytest.importorskip("trl")
    records, settings = FORMATS[name]
    args = trl.SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], **settings)
    theirs = trl.SFTTrainer(model, args, train_dataset=Dataset.from_list(records)).train_dataset
    ours = encode_dataset(Dataset.from_list(records), encoder_for(model, settings), None, None)
    assert ours["input_ids"] == theirs["input_ids"] and ours["labels"] == theirs["labels"]
    assert ours.column_names == ["input_ids", "labels"]


def test_a_formatting_function_makes_the_text(model: str):
    encoder, records = encoder_for(model, {}), Dataset.from_list([{"question": "2+2", "answer": "4"}])
    encoded = encode_dataset(records, encoder, lambda record: f"{record['question']}={record['answer']}", None)
    assert encoded[0] == encoder({"text": "2+2=4"})


def test_unknown_columns_are_named(model: str):
    with pytest.raises(DataError, match="the columns question, answer"):
        encoder_for(model, {})({"question": "2+2", "answer": "4"})


def test_answers_cannot_be_told_apart_without_marks(model: str):
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert template_with_marks(tokenizer) is None
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ConfigError, match="does not mark what the assistant generates"):
        template_with_marks(tokenizer)
    with pytest.raises(ConfigError, match="no conversations"):
        encoder_for(model, {"assistant_only_loss": True})({"text": "words"})
