"""Patterns of names -> what is not trained."""

import pytest

from slideformer.errors import ConfigError
from slideformer.models.freezing import frozen_names

NAMES = ["embed.weight", "layers.0.attn.weight", "layers.0.mlp.weight", "layers.1.attn.weight", "layers.1.mlp.weight"]


def test_without_patterns_everything_is_trained():
    assert frozen_names(NAMES) == frozenset()


def test_trainable_leaves_out_all_others_and_frozen_takes_away():
    assert frozen_names(NAMES, trainable=[r"\.mlp\."]) == {NAMES[0], NAMES[1], NAMES[3]}
    assert frozen_names(NAMES, frozen=["embed", r"layers\.0\."]) == set(NAMES[:3])
    assert frozen_names(NAMES, trainable=["layers"], frozen=["attn"]) == {NAMES[0], NAMES[1], NAMES[3]}


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        ({"frozen": ["head"]}, "frozen: 'head' matches no parameter, such as layers.0.mlp.weight"),
        ({"trainable": ["("]}, "trainable: '(' is not a regular expression"),
        ({"frozen": ["."]}, "leave no parameter to train"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(patterns: dict[str, list[str]], words: str):
    with pytest.raises(ConfigError) as caught:
        frozen_names(NAMES, **patterns)
    assert words in caught.value.message and caught.value.hint
