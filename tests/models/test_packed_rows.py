"""Masks are the same, whether or not transformers looks at the position ids: it does where they can tell."""

import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor
from transformers import masking_utils

from slideformer.models.architecture import Decoder
from slideformer.models.packed_rows import PackedRows


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Position ids that were looked at."""
    seen: list[Tensor] = []
    find = PackedRows.find

    def spy(self: PackedRows, look: object, position_ids: Tensor) -> Tensor | None:
        def look_and_tell(ids: Tensor) -> Tensor | None:
            seen.append(ids)
            return look(ids)  # type: ignore[operator]

        return find(self, look_and_tell, position_ids)

    monkeypatch.setattr(PackedRows, "find", spy)
    return seen


def test_a_length_is_looked_at_once(looked: list[Tensor]):
    decoder = Decoder(tiny_model("qwen3").config, torch.device("cpu"), "sdpa")
    looked.clear()
    for length in (8, 8, 9, 8):
        ids = torch.zeros(3, length, dtype=torch.int64)
        decoder.enter(ids, torch.zeros(1, decoder.embedding_width), ids, {}, seed=0)
    assert [ids.shape[-1] for ids in looked] == [8, 9]


def packed(position_ids: Tensor) -> Tensor | None:
    return masking_utils.find_packed_sequence_indices(position_ids)


@pytest.mark.parametrize("batch", [1, 3])
def test_positions_of_their_own_are_looked_at_each_time(batch: int):
    rows = PackedRows()
    one, two = torch.arange(6).expand(batch, -1).clone(), torch.tensor([[0, 1, 2, 0, 1, 2]]).repeat(batch, 1)
    with rows.known():
        assert packed(torch.arange(6)[None].expand(batch, -1)) is None
        assert packed(one) is None
        found = packed(two)
    assert found is not None and found[0].tolist() == [0, 0, 0, 1, 1, 1]


def test_one_row_of_several_documents_is_not_taken_for_one():
    rows, row = PackedRows(), torch.tensor([0, 1, 0, 1])
    with rows.known():
        assert all(packed(row[None].expand(2, -1)) is not None for _ in range(2))


def test_others_are_not_concerned():
    with PackedRows().known():
        packed(torch.arange(4)[None].expand(2, -1))
    assert packed(torch.tensor([0, 1, 0, 1])[None].expand(2, -1)) is not None
