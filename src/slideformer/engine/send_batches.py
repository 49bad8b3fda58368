"""A step's micro-batches on their way to the device, with the embedding rows that they use."""

from itertools import chain
from typing import Protocol

import torch
from torch import Tensor

from slideformer.data.batches import Batch
from slideformer.data.chat import IGNORED
from slideformer.engine.compute import MicroBatch
from slideformer.memory.feed import TokenFeed
from slideformer.models.packed_attention import Documents


def documents_on(batch: Batch, device: torch.device) -> Documents | None:
    """The documents of packed rows, sent at once."""
    if batch.documents is None:
        return None
    positions, bounds = (tensor.to(device) for tensor in batch.places())
    return Documents(positions, bounds, batch.spans)


def _pieces(batch: Batch, row_of: Tensor) -> list[Tensor]:
    """The integers of one micro-batch: ids, rows, trained positions and their targets; packed, places in documents."""
    positions = (batch.targets.flatten() != IGNORED).nonzero().flatten()
    targets = batch.targets.flatten()[positions]
    places = batch.places() if batch.documents else ()
    return [batch.input_ids, row_of.view(batch.input_ids.shape), positions, targets, *places]


def _arrived(batch: Batch, pieces: list[Tensor], seed: int) -> MicroBatch:
    ids, row_of, positions, targets, *places = pieces
    documents = Documents(places[0], places[1], batch.spans) if places else None
    return MicroBatch(ids, row_of, positions, targets, seed, documents)


class HasRows(Protocol):
    """An embedding whose rows can be sent to the device."""

    @property
    def row_ids(self) -> Tensor: ...

    def gather(self, token_ids: Tensor) -> tuple[Tensor, Tensor]: ...


def send_batches(
    micro_batches: list[Batch], seeds: list[int], table: HasRows, token_feed: TokenFeed
) -> tuple[list[MicroBatch], Tensor, Tensor]:
    """Micro-batches on the device, the embedding rows they use [u, width] and those rows' ids [u]."""
    rows, row_of = table.gather(torch.cat([batch.input_ids.flatten() for batch in micro_batches]))
    rows_of_each = row_of.split([batch.input_ids.numel() for batch in micro_batches])
    pieces = [_pieces(batch, of) for batch, of in zip(micro_batches, rows_of_each, strict=True)]
    row_ids, *sent = token_feed.send([table.row_ids, *chain.from_iterable(pieces)])
    arrived = iter(sent)
    arrived_of_each = [[next(arrived) for _ in sent_of_one] for sent_of_one in pieces]
    return list(map(_arrived, micro_batches, arrived_of_each, seeds)), rows, row_ids
