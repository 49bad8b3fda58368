"""Examples -> padded batches, in an order that depends only on the seed, the epoch and the step."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from slideformer.data.chat import IGNORED
from slideformer.data.examples import Example, Examples
from slideformer.data.mixture import Mixture
from slideformer.data.packing import Rows, one_a_row, pack
from slideformer.errors import DataError
from slideformer.optim.lr import total_steps


@dataclass(frozen=True, eq=False)
class Batch:
    """The rows of a step or micro-batch, on the CPU, padded on the right.

    Attributes:
        input_ids: [B, T] int64.
        targets: [B, T] int64; `targets[b, t]` is the label of token t + 1, -100 where nothing is trained.
        lengths: tokens of each row without padding.
        indices: the record number of each example, row by row, for error messages.
        documents: tokens of each example in each row, where rows are packed; None: a row is one example.
    """

    input_ids: Tensor
    targets: Tensor
    lengths: tuple[int, ...]
    indices: tuple[int, ...]
    documents: tuple[tuple[int, ...], ...] | None = None

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

    @property
    def spans(self) -> tuple[int, ...]:
        """Lengths of what must not see each other, row behind row: documents, and pieces of padding. Sum: B * T."""
        return tuple(length for row in self._rows_of_documents for length in (*row, *self._padding(sum(row))))

    def places(self) -> tuple[Tensor, Tensor]:
        """(position of each token in its document, int64 [B, T]; where spans begin and end, int64 [spans + 1]).

        Padding is at position 0 throughout: it may be longer than a table of positions.
        """
        positions = torch.zeros_like(self.input_ids)
        for places, row in zip(positions, self._rows_of_documents, strict=True):
            places[: sum(row)] = torch.cat([torch.arange(length) for length in row])
        return positions, torch.tensor([0, *accumulate(self.spans)])

    @property
    def _rows_of_documents(self) -> tuple[tuple[int, ...], ...]:
        return self.documents or tuple((length,) for length in self.lengths)

    def _padding(self, used: int) -> list[int]:
        """The padding behind `used` tokens in pieces no longer than a document, since some attention takes squares."""
        padding, longest = self.input_ids.shape[1] - used, max(map(max, self._rows_of_documents))
        return [min(longest, padding - start) for start in range(0, padding, longest)]

    def split(self, micro_batch_size: int) -> list["Batch"]:
        """Consecutive groups of `micro_batch_size` rows, each cut to its own longest row."""
        starts = range(0, len(self.lengths), micro_batch_size)
        return [self._rows(slice(start, start + micro_batch_size)) for start in starts]

    def _rows(self, rows: slice) -> "Batch":
        longest = max(self.lengths[rows])
        input_ids, targets = (tensor[rows, :longest].contiguous() for tensor in (self.input_ids, self.targets))
        if self.documents is None:
            return Batch(input_ids, targets, self.lengths[rows], self.indices[rows])
        first, last = (sum(map(len, self.documents[:row])) for row in (rows.start, rows.stop))
        return Batch(input_ids, targets, self.lengths[rows], self.indices[first:last], self.documents[rows])


def collate(examples: Sequence[Example], pad_id: int) -> Batch:
    """Pad `examples`, one a row, to the longest and shift their labels into next-token targets."""
    packed = collate_packed([[example] for example in examples], pad_id)
    return Batch(packed.input_ids, packed.targets, packed.lengths, packed.indices)


def collate_packed(rows: Sequence[Sequence[Example]], pad_id: int) -> Batch:
    """Rows of examples, one behind the other; the last token of an example predicts nothing."""
    documents = tuple(tuple(len(example.input_ids) for example in row) for row in rows)
    lengths = tuple(map(sum, documents))
    input_ids = torch.full((len(rows), max(lengths)), pad_id, dtype=torch.int64)
    targets = torch.full_like(input_ids, IGNORED)
    for ids, labels, row in zip(input_ids, targets, rows, strict=True):
        start = 0
        for example in row:
            end = start + len(example.input_ids)
            ids[start:end] = example.input_ids
            labels[start : end - 1] = example.labels[1:]
            start = end
    return Batch(input_ids, targets, lengths, tuple(example.index for row in rows for example in row), documents)


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
    Trainer. Packed, the number of rows and so of steps differs a little between epochs: it is found by packing them.

    Args:
        examples: at least one.
        batch_size: rows per optimizer step.
        shuffle: a new order each epoch; otherwise every epoch keeps the given order.
        seed: together with the epoch, decides the order.
        pad_id: token id of padding; it is never trained.
        mixture: the sources of `examples` and their weights; None: one source.
        row_length: pack examples into rows of at most so many tokens; None: one example a row.

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
        row_length: int | None = None,
    ):
        if not len(examples):
            raise DataError("there is nothing to train on", hint="give data.path a file with at least one record")
        self._examples = examples
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._seed = seed
        self._pad_id = pad_id
        self._mixture = mixture or Mixture([len(examples)], [1.0])
        self._row_length = row_length
        self._epoch_and_rows = (-1, one_a_row(np.arange(0)))
        self._first_steps = [0]  # of epoch 0, 1, ... as far as they were asked for

    @property
    def steps_per_epoch(self) -> int:
        """Of the first epoch, and unless packed of every one."""
        return self._steps_of(0)

    def steps_in(self, epochs: float) -> int:
        """Optimizer steps of so many epochs, a part of an epoch rounded up to a step."""
        if self._row_length is None:
            return total_steps(-1, epochs, self.steps_per_epoch)
        whole = int(epochs)
        part = math.ceil(round((epochs - whole) * self._steps_of(whole), 6)) if epochs > whole else 0
        return max(1, self._first_step(whole) + part)

    def at(self, step: int) -> Batch:
        """The batch of optimizer step `step`, counted from 0 over all epochs."""
        epoch, position = self._place(step)
        rows = self.rows(epoch)
        start = position * self._batch_size
        numbers = range(start, min(start + self._batch_size, len(rows)))
        chosen = [[self._examples[i] for i in rows[number]] for number in numbers]
        if self._row_length is None:
            return collate([example for row in chosen for example in row], self._pad_id)
        return collate_packed(chosen, self._pad_id)

    def rows(self, epoch: int) -> Rows:
        """What stands in each row of an epoch."""
        if self._epoch_and_rows[0] != epoch:
            order = self._mixture.order(epoch, shuffle=self._shuffle, seed=self._seed)
            self._epoch_and_rows = (epoch, self._packed(order, epoch) if self._row_length else one_a_row(order))
        return self._epoch_and_rows[1]

    def _packed(self, order: np.ndarray, epoch: int) -> Rows:
        assert self._row_length is not None
        # Four numbers, so that it is none of the mixture's generators.
        generator = np.random.default_rng([self._seed, epoch, 0, 1]) if self._shuffle else None
        return pack(order, self._lengths, self._row_length, generator)

    @cached_property
    def _lengths(self) -> np.ndarray:
        if isinstance(self._examples, Examples):
            return self._examples.lengths.numpy()
        return np.array([len(example.input_ids) for example in self._examples])

    def _place(self, step: int) -> tuple[int, int]:
        """(epoch, step within it)."""
        while self._first_steps[-1] <= step:
            self._first_step(len(self._first_steps))
        epoch = bisect_right(self._first_steps, step) - 1
        return epoch, step - self._first_steps[epoch]

    def _first_step(self, epoch: int) -> int:
        while len(self._first_steps) <= epoch:
            last = len(self._first_steps) - 1
            self._first_steps.append(self._first_steps[last] + self._steps_of(last))
        return self._first_steps[epoch]

    def _steps_of(self, epoch: int) -> int:
        rows = sum(self._mixture.draws) if self._row_length is None else len(self.rows(epoch))
        return -(-rows // self._batch_size)
