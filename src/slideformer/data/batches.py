"""Examples -> padded batches, in an order that depends only on the seed, the epoch and the step."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from slideformer.data.chat import IGNORED
from slideformer.data.examples import Example
from slideformer.data.mixture import Mixture
from slideformer.errors import DataError


@dataclass(frozen=True, eq=False)
class Batch:
    """The sequences of a step or micro-batch, on the CPU, padded on the right.

    Attributes:
        input_ids: [B, T] int64.
        targets: [B, T] int64; `targets[b, t]` is the label of token t + 1, -100 where nothing is trained.
        lengths: tokens of each row without padding.
        indices: the record number of each row, for error messages.
    """

    input_ids: Tensor
    targets: Tensor
    lengths: tuple[int, ...]
    indices: tuple[int, ...]

    @staticmethod
    def from_tensors(
        input_ids: "Tensor | Sequence[Sequence[int]]",
        labels: "Tensor | Sequence[Sequence[int]] | None" = None,
        attention_mask: Tensor | None = None,
    ) -> "Batch":
        """A batch in Hugging Face's convention: labels stand at their own token, and are shifted here.

        Args:
            input_ids: [B, T], or B lists of different lengths.
            labels: of the same shape, -100 where nothing is trained; None trains on every token.
            attention_mask: [B, T], 0 on padding, which must be on the right; None: nothing is padding.

        Raises:
            ValueError: shapes differ, padding is not on the right, or nothing is trained.
        """
        labels = input_ids if labels is None else labels
        lengths = [len(row) for row in input_ids] if attention_mask is None else _lengths(attention_mask)
        if [len(row) for row in labels] != [len(row) for row in input_ids] or len(lengths) != len(input_ids):
            raise ValueError("labels and attention_mask must have the shape of input_ids")
        rows = zip(input_ids, labels, lengths, strict=True)
        batch = collate([Example(i, *_int32(ids, own, length)) for i, (ids, own, length) in enumerate(rows)], 0)
        if not batch.trained_tokens:
            raise ValueError("no token is trained: every label but the first of a sequence is -100")
        return batch

    @property
    def tokens(self) -> int:
        """Tokens of all rows without padding."""
        return sum(self.lengths)

    @cached_property
    def trained_tokens(self) -> int:
        """Tokens that the loss is a mean over."""
        return int((self.targets != IGNORED).sum())

    def split(self, micro_batch_size: int) -> list["Batch"]:
        """Consecutive groups of `micro_batch_size` rows, each cut to its own longest row."""
        starts = range(0, len(self.lengths), micro_batch_size)
        return [self._rows(slice(start, start + micro_batch_size)) for start in starts]

    def _rows(self, rows: slice) -> "Batch":
        longest = max(self.lengths[rows])
        input_ids, targets = (tensor[rows, :longest].contiguous() for tensor in (self.input_ids, self.targets))
        return Batch(input_ids, targets, self.lengths[rows], self.indices[rows])


def collate(examples: Sequence[Example], pad_id: int) -> Batch:
    """Pad `examples` to the longest and shift their labels into next-token targets."""
    lengths = tuple(len(example.input_ids) for example in examples)
    input_ids = torch.full((len(examples), max(lengths)), pad_id, dtype=torch.int64)
    targets = torch.full_like(input_ids, IGNORED)
    for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
        input_ids[row, :length] = example.input_ids
        targets[row, : length - 1] = example.labels[1:]
    return Batch(input_ids, targets, lengths, tuple(example.index for example in examples))


def _lengths(attention_mask: Tensor) -> list[int]:
    lengths = attention_mask.sum(dim=1).tolist()
    if any(not row[:length].all() for row, length in zip(attention_mask, lengths, strict=True)):
        raise ValueError("attention_mask: padding must be on the right of each sequence")
    return lengths


def _int32(ids: "Tensor | Sequence[int]", labels: "Tensor | Sequence[int]", length: int) -> list[Tensor]:
    return [torch.as_tensor(values)[:length].to(torch.int32) for values in (ids, labels)]


class BatchStream:
    """Batches by step number, so that resuming is asking for the next step.

    Each epoch passes over all examples once, or as `mixture` says; its last batch may be smaller, as in transformers'
    Trainer.

    Args:
        examples: at least one.
        batch_size: sequences per optimizer step.
        shuffle: a new order each epoch; otherwise every epoch keeps the given order.
        seed: together with the epoch, decides the order.
        pad_id: token id of padding; it is never trained.
        mixture: the sources of `examples` and their weights; None: one source.

    Raises:
        DataError: there are no examples.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        pad_id: int = 0,
        mixture: Mixture | None = None,
    ):
        if not len(examples):
            raise DataError("there is nothing to train on", hint="give data.path a file with at least one record")
        self._examples = examples
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._seed = seed
        self._pad_id = pad_id
        self._mixture = mixture or Mixture([len(examples)], [1.0])
        self._epoch_and_order = (-1, np.arange(0))

    @property
    def steps_per_epoch(self) -> int:
        return -(-sum(self._mixture.draws) // self._batch_size)

    def at(self, step: int) -> Batch:
        """The batch of optimizer step `step`, counted from 0 over all epochs."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self._batch_size
        chosen = self._order(epoch)[start : start + self._batch_size]
        return collate([self._examples[i] for i in chosen], self._pad_id)

    def _order(self, epoch: int) -> np.ndarray:
        if self._epoch_and_order[0] != epoch:
            order = self._mixture.order(epoch, shuffle=self._shuffle, seed=self._seed)
            self._epoch_and_order = (epoch, order)
        return self._epoch_and_order[1]
