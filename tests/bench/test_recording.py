"""Names of recorded pieces: a block's backward gives its number to what follows it."""

import torch

from slideformer.bench.recording import Piece, name_of, named_by_block
from slideformer.bench.spans import COMPUTE, D2H, H2D
from slideformer.lanes.measured import WallMark
from slideformer.memory.gradients import copy_async


def names(*pieces: tuple[str, str]) -> list[str]:
    return [piece.name for piece in named_by_block([Piece(*piece, WallMark(), WallMark()) for piece in pieces])]


def test_what_follows_a_backward_has_its_number():
    of_one = [(COMPUTE, "GradientFlush"), (D2H, "copy"), (D2H, "copy norm"), (H2D, "fetch 3")]
    named = names((COMPUTE, "backward 5"), *of_one, (COMPUTE, "backward 4"), (COMPUTE, "backward 4"), *of_one)
    following = ["flush 5", "send 5", "copy norm", "fetch 3"]
    assert named[:5] == ["backward 5", *following]
    assert named[5:] == ["backward 4", "backward 4", *(name.replace("5", "4") for name in following)]


def test_an_update_on_the_device_has_its_number():
    assert names((COMPUTE, "backward 0"), (COMPUTE, "GradientFlush"), (COMPUTE, "partial"))[-1] == "update 0"


def test_other_computation_ends_a_block():
    before = [(COMPUTE, "forward 1"), (D2H, "copy"), (COMPUTE, "head"), (COMPUTE, "GradientFlush"), (D2H, "copy")]
    assert names(*before) == ["forward 1", "copy", "head", "GradientFlush", "copy"]
    behind = [(COMPUTE, "enter_backward"), (COMPUTE, "GradientFlush"), (D2H, "copy"), (COMPUTE, "partial")]
    assert names((COMPUTE, "backward 0"), *behind)[1:] == ["enter_backward", "GradientFlush", "copy", "partial"]


def test_a_norm_is_no_gradient():
    assert name_of(D2H, copy_async, (torch.zeros(3), torch.zeros(3))) == "copy"
    assert name_of(D2H, copy_async, (torch.zeros(()), torch.zeros(()))) == "copy norm"
