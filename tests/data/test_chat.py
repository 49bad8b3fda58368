"""Which tokens of a record are trained."""

from typing import Any

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from slideformer.data.chat import IGNORED, Tokens, encode
from slideformer.data.source import Record, RecordKind
from slideformer.errors import DataError

MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Like the templates of reasoning models: only the last answer shows its thoughts.
REWRITING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think></think>{% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m['content'] }}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = [
    {"role": "system", "content": "hello"},
    {"role": "user", "content": "two plus two"},
    {"role": "assistant", "content": "is four"},
    {"role": "user", "content": "how are you"},
    {"role": "assistant", "content": "there é"},
]


def record(kind: RecordKind, **fields: Any) -> Record:
    return Record(0, "data.jsonl:7", kind, fields)


def trained_text(tokenizer: PreTrainedTokenizerFast, tokens: Tokens) -> str:
    assert all(label in (IGNORED, token) for token, label in zip(*tokens, strict=True))
    return str(tokenizer.decode([label for label in tokens.labels if label != IGNORED]))


def chat_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    encoding: Any = tokenizer.apply_chat_template(TURNS, tokenize=True, return_dict=True)
    return encoding["input_ids"]


def error_of(tokenizer: PreTrainedTokenizerFast | None, kind: RecordKind, **fields: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        encode(record(kind, **fields), tokenizer)
    assert caught.value.message.startswith("data.jsonl:7: ") and caught.value.hint
    return caught.value


def test_messages_train_every_answer_with_its_end_of_turn(tokenizer: PreTrainedTokenizerFast):
    tokens = encode(record("messages", messages=TURNS), tokenizer)
    assert tokens.input_ids == chat_ids(tokenizer)
    assert trained_text(tokenizer, tokens) == "is four<|im_end|>\nthere é<|im_end|>\n"


def test_generation_marks_decide_where_the_template_has_them(tokenizer: PreTrainedTokenizerFast):
    tokenizer.chat_template = MARKED
    tokens = encode(record("messages", messages=TURNS), tokenizer)
    assert tokens.input_ids == chat_ids(tokenizer)
    assert trained_text(tokenizer, tokens) == "is four<|im_end|>there é<|im_end|>"


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: PreTrainedTokenizerFast):
    tokenizer.chat_template = REWRITING
    single = encode(record("messages", messages=TURNS[:3]), tokenizer)
    assert trained_text(tokenizer, single) == "<think></think>is four<|im_end|>\n"
    error = error_of(tokenizer, "messages", messages=TURNS)
    assert "rewrites" in error.message and "message 3" in error.message and "generation" in error.hint
    last = encode(record("messages", messages=TURNS), tokenizer, "last")  # as the hint says
    assert trained_text(tokenizer, last) == "<think></think>there é<|im_end|>\n"


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_only_the_last_answer(tokenizer: PreTrainedTokenizerFast, template: str):
    tokenizer.chat_template = template
    tokens = encode(record("messages", messages=TURNS), tokenizer, "last")
    assert tokens.input_ids == chat_ids(tokenizer)
    assert trained_text(tokenizer, tokens).rstrip("\n") == "there é<|im_end|>"


@pytest.mark.parametrize("template", [CHATML, MARKED, REWRITING])
def test_everything(tokenizer: PreTrainedTokenizerFast, template: str):
    tokenizer.chat_template = template
    tokens = encode(record("messages", messages=TURNS), tokenizer, "everything")
    assert tokens.input_ids == tokens.labels == chat_ids(tokenizer)


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_a_conversation_without_an_answer_trains_nothing(tokenizer: PreTrainedTokenizerFast, template: str):
    tokenizer.chat_template = template
    for train_on in ("assistant", "last"):
        assert trained_text(tokenizer, encode(record("messages", messages=TURNS[:2]), tokenizer, train_on)) == ""


def test_a_prompt_can_be_trained_as_well(tokenizer: PreTrainedTokenizerFast):
    tokens = encode(record("completion", prompt="two plus two ", completion="is four"), tokenizer, "everything")
    assert trained_text(tokenizer, tokens) == "two plus two is four</s>"


def test_a_prompt_that_opens_what_the_answer_does_not_is_refused(tokenizer: PreTrainedTokenizerFast):
    tokenizer.chat_template = str(tokenizer.chat_template).replace("assistant\n{% endif", "assistant\n<think>{% endif")
    assert "rewrites" in error_of(tokenizer, "messages", messages=TURNS).message


def test_a_template_may_refuse_a_conversation(tokenizer: PreTrainedTokenizerFast):
    tokenizer.chat_template = ALTERNATING
    error = error_of(tokenizer, "messages", messages=[TURNS[1], TURNS[3], TURNS[4]])
    assert "roles must alternate" in error.message


def test_tools_reach_the_template(tokenizer: PreTrainedTokenizerFast):
    tokenizer.chat_template = "{{ tools[0]['name'] }}" + str(tokenizer.chat_template)
    tokens = encode(record("messages", messages=TURNS[1:3], tools=[{"name": "calc"}]), tokenizer)
    assert str(tokenizer.decode(tokens.input_ids)).startswith("calc")
    assert trained_text(tokenizer, tokens) == "is four<|im_end|>\n"


def test_completion_is_trained_and_ended_but_not_its_prompt(tokenizer: PreTrainedTokenizerFast):
    tokens = encode(record("completion", prompt="two plus two ", completion="is four"), tokenizer)
    assert tokens.input_ids == [*tokenizer("two plus two is four")["input_ids"], tokenizer.eos_token_id]
    assert trained_text(tokenizer, tokens) == " is four</s>"


def test_a_token_across_the_border_is_trained(tokenizer: PreTrainedTokenizerFast):
    assert len(tokenizer(" four", add_special_tokens=False)["input_ids"]) == 1
    tokens = encode(record("completion", prompt="two is ", completion="four"), tokenizer)
    assert trained_text(tokenizer, tokens) == " four</s>"


def test_text_is_trained_whole(tokenizer: PreTrainedTokenizerFast):
    tokens = encode(record("text", text="hello there"), tokenizer)
    assert tokens.input_ids[0] == tokenizer.bos_token_id and tokens.labels[0] == IGNORED
    assert trained_text(tokenizer, tokens) == "hello there</s>"


def test_an_end_of_sequence_that_is_there_is_not_doubled(tokenizer: PreTrainedTokenizerFast):
    tokens = encode(record("completion", prompt="two", completion=" four</s>"), tokenizer)
    assert trained_text(tokenizer, tokens) == " four</s>"


def test_an_end_of_sequence_the_tokenizer_adds_is_trained(tokenizer: PreTrainedTokenizerFast):
    end: Any = tokenizer.eos_token_id
    ends = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    tokenizer.backend_tokenizer.post_processor = ends
    tokens = encode(record("completion", prompt="two", completion=" four"), tokenizer)
    assert tokens.input_ids.count(end) == 1
    assert trained_text(tokenizer, tokens) == " four</s>"


def test_a_tokenizer_without_end_of_sequence(tokenizer: PreTrainedTokenizerFast):
    tokenizer.eos_token = None
    assert trained_text(tokenizer, encode(record("text", text="hello"), tokenizer)) == "hello"


def test_tokenized_records_are_used_exactly_as_given():
    assert encode(record("tokenized", input_ids=[5, 6, 7]), None) == ([5, 6, 7], [5, 6, 7])
    given = record("tokenized", input_ids=[5, 6, 7], labels=[-100, 9, 7])
    assert encode(given, None) == ([5, 6, 7], [-100, 9, 7])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input_ids": "5 6"}, "input_ids is not a list"),
        ({"input_ids": [1.5]}, "input_ids is not a list"),
        ({"input_ids": [True]}, "input_ids is not a list"),
        ({"input_ids": [1, 2], "labels": [1]}, "2 input_ids but 1 labels"),
        ({"input_ids": [1, 2], "labels": 3}, "labels is not a list"),
    ],
)
def test_malformed_tokenized_records(fields: dict[str, Any], words: str):
    assert words in error_of(None, "tokenized", **fields).message


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "not a list of turns"),
        ("hello", "not a list of turns"),
        ([{"role": "robot", "content": "a"}], "message 1 has the role 'robot'"),
        ([{"from": "human", "value": "a"}], "message 1 has the role None"),
        (["hello"], "message 1 has the role None"),
        ([TURNS[0], {"role": "user"}], "message 2 has no content"),
        ([{"role": "user", "content": 5}], "message 1 has no content"),
    ],
)
def test_malformed_conversations(tokenizer: PreTrainedTokenizerFast, messages: Any, words: str):
    assert words in error_of(tokenizer, "messages", messages=messages).message


def test_text_needs_a_tokenizer_and_messages_a_template(tokenizer: PreTrainedTokenizerFast):
    assert "no tokenizer" in error_of(None, "text", text="a").message
    tokenizer.chat_template = None
    assert "no chat template" in error_of(tokenizer, "messages", messages=TURNS).message


@pytest.mark.parametrize("fields", [{"prompt": 1, "completion": "a"}, {"prompt": "a", "completion": ["b"]}])
def test_prompt_and_completion_are_texts(tokenizer: PreTrainedTokenizerFast, fields: dict[str, Any]):
    assert "is not a text" in error_of(tokenizer, "completion", **fields).message
