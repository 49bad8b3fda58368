"""Whether rows hold several documents, found out without a look at values in every step.

transformers' masks look for packed rows in the position ids, and the host waits for the device to hear the answer: at
each begin of a forward and at each chunk of the head. Position ids that are one row's for all rows depend on nothing
but its length, so once they have been looked at, the answer is known.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps

from torch import Tensor
from transformers import masking_utils

Look = Callable[[Tensor], Tensor | None]  # position ids [b, t] -> which document each token is in; None: one a row


class PackedRows:
    """What is known of a model's rows. Within `known()`, masks are made without looking at it again."""

    def __init__(self) -> None:
        self._one_document: set[int] = set()  # lengths of rows that are known to hold one

    @contextmanager
    def known(self) -> Iterator[None]:
        token = _asked.set(self)
        try:
            yield
        finally:
            _asked.reset(token)

    def find(self, look: Look, position_ids: Tensor) -> Tensor | None:
        """As `look`, which is asked where the answer is not known."""
        length, row = position_ids.shape[-1], position_ids._base
        of_all_rows = row is not None and row.ndim == 1
        if of_all_rows and length in self._one_document:
            return None
        found = look(position_ids)
        if of_all_rows and found is None:
            self._one_document.add(length)
        return found


_asked: ContextVar[PackedRows | None] = ContextVar("packed rows", default=None)


def _ask_first(look: Look) -> Look:
    @wraps(look)
    def find(position_ids: Tensor) -> Tensor | None:
        rows = _asked.get()
        return look(position_ids) if rows is None else rows.find(look, position_ids)

    return find


if hasattr(masking_utils, "find_packed_sequence_indices"):  # its name is not public
    masking_utils.find_packed_sequence_indices = _ask_first(masking_utils.find_packed_sequence_indices)
