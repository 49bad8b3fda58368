"""What tests of the disk tier share: models with more blocks than there are buffers, and how outcomes are compared."""

from dataclasses import replace
from functools import cache

from tiny_models import tiny_model
from tiny_runs import SIZES, States, Subject, differences, make_records, subject

BLOCKS = 6  # more than there are buffers
RECORDS = make_records(21)
BITES = 0.5  # below every gradient norm of these runs
IN_MEMORY = replace(SIZES, gradient_slots=BLOCKS)

Outcome = tuple[list[float], States]  # what was seen on the way, and the states at the end


@cache
def deep(family: str) -> Subject:
    return subject(tiny_model(family, **{"n_layer" if family == "gpt2" else "num_hidden_layers": BLOCKS}))


def assert_same(one: Outcome, other: Outcome) -> None:
    assert one[0] == other[0]
    assert differences(one[1], other[1]) == []
