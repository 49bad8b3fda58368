"""The tensors in a block's call: found, read and replaced wherever they are."""

from collections import namedtuple

import torch

from slideformer.models.block_call import BlockCall, leaf_at, leaves_of, with_leaves

Pair = namedtuple("Pair", "one other")
A, B, C, D = (torch.full((2,), float(k)) for k in range(4))
CALL = BlockCall((A, None, [B, 3]), {"positions": (C, {"deep": Pair(D, "x")}), "flag": True, "again": A})


def test_every_tensor_is_found_with_its_path():
    found = {path: leaf for path, leaf in leaves_of(CALL)}
    assert list(found) == [
        ("args", 0),
        ("args", 2, 0),
        ("kwargs", "positions", 0),
        ("kwargs", "positions", 1, "deep", 0),
        ("kwargs", "again"),
    ]
    assert all(leaf_at(CALL, path) is leaf for path, leaf in found.items())


def test_replacing_changes_these_and_nothing_else():
    new = torch.zeros(1)
    changed = with_leaves(CALL, {("args", 2, 0): new, ("kwargs", "positions", 1, "deep", 0): new})
    assert changed.args[2] == [new, 3] and changed.kwargs["positions"][1]["deep"] == Pair(new, "x")
    assert changed.args[0] is A and changed.kwargs["flag"] is True and leaf_at(CALL, ("args", 2, 0)) is B
