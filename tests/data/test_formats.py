"""ShareGPT and Alpaca become messages; everything else is what its columns say."""

from typing import Any

import pytest

from slideformer.data.formats import recognise
from slideformer.errors import DataError

QUESTION, ANSWER = {"role": "user", "content": "two plus two"}, {"role": "assistant", "content": "is four"}


def test_sharegpt_becomes_messages():
    turns = [{"from": "human", "value": "two plus two"}, {"from": "gpt", "value": "is four"}]
    assert recognise({"conversations": turns}) == ("messages", {"messages": [QUESTION, ANSWER], "tools": None})


def test_a_system_column_comes_first_and_tools_are_kept():
    turns = [{"from": "human", "value": "two plus two"}, {"from": "observation", "value": "4"}]
    _, fields = recognise({"conversations": turns, "system": "be brief", "tools": [{"name": "calc"}]})
    assert [message["role"] for message in fields["messages"]] == ["system", "user", "tool"]
    assert fields["tools"] == [{"name": "calc"}]


def test_conversations_with_role_and_content_are_messages():
    assert recognise({"conversations": [QUESTION, ANSWER]})[1]["messages"] == [QUESTION, ANSWER]


@pytest.mark.parametrize("empty", [{}, {"input": ""}, {"input": None}])
def test_alpaca_becomes_messages(empty: dict[str, Any]):
    kind, fields = recognise({"instruction": "two plus two", "output": "is four", **empty})
    assert kind == "messages" and fields["messages"] == [QUESTION, ANSWER]


def test_alpacas_input_stands_below_and_history_before():
    record = {"instruction": "add", "input": "2 2", "output": "4", "history": [["two plus two", "is four"]]}
    _, fields = recognise(record)
    assert fields["messages"][:2] == [QUESTION, ANSWER]
    assert [message["content"] for message in fields["messages"][2:]] == ["add\n\n2 2", "4"]


def test_known_columns_win_over_those_of_other_trainers():
    assert recognise({"messages": [ANSWER], "conversations": []})[0] == "messages"
    assert recognise({"input_ids": [1], "instruction": "a", "output": "b"})[0] == "tokenized"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"conversations": "hello"}, "conversations is not a list"),
        ({"conversations": ["hello"]}, "conversations is not a list"),
        ({"conversations": [{"from": "robot", "value": "a"}]}, "turn 1 is from 'robot'"),
        ({"conversations": [{"from": ["human"], "value": "a"}]}, "turn 1 is from"),
        ({"instruction": 3, "output": "a"}, "instruction is not a text"),
        ({"instruction": "a", "output": "b", "history": ["c"]}, "history is not a list of pairs"),
        ({"instruction": "a"}, "found: instruction"),
    ],
)
def test_what_is_neither_is_refused(fields: dict[str, Any], words: str):
    with pytest.raises(DataError, match=words) as caught:
        recognise(fields)
    assert caught.value.hint
