"""Patterns of names -> what is not trained."""

import pytest

from slideformer.errors import ConfigError
from slideformer.models.freezing import frozen_names, trained_in_words

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


SHAPES = {name: (2, 1_000) for name in NAMES}


def test_a_run_that_trains_everything_has_nothing_to_say():
    assert trained_in_words(SHAPES, (), (), {"trainable": [], "frozen": []}) is None


@pytest.mark.parametrize(
    ("frozen", "unused", "patterns", "words"),
    [
        (NAMES[:3], [], {"trainable": [], "frozen": ["embed", r"layers\.0"]},
         "trained: 4,000 parameters in 2 tensors; not trained: 6,000 parameters in 3 tensors frozen "
         r"(frozen: embed, layers\.0)"),
        (NAMES[:4], NAMES[:1], {"trainable": [r"1\.mlp"], "frozen": []},
         "trained: 2,000 parameters in 1 tensor; not trained: 6,000 parameters in 3 tensors frozen "
         r"(trainable: 1\.mlp); 2,000 parameters in 1 tensor never reached by text, such as embed.weight"),
        (NAMES[:1], NAMES[:1], {},
         "trained: 8,000 parameters in 4 tensors; not trained: "
         "2,000 parameters in 1 tensor never reached by text, such as embed.weight"),
        (NAMES[:1], [], {},
         "trained: 8,000 parameters in 4 tensors; not trained: 2,000 parameters in 1 tensor frozen"),
    ],
)  # fmt: skip
def test_counts_patterns_and_what_text_never_reaches(
    frozen: list[str], unused: list[str], patterns: dict[str, list[str]], words: str
):
    assert trained_in_words(SHAPES, frozen, unused, patterns) == words
