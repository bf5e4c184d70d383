"""This rank's gradients of a step, or its sums of micro-batches: dropped when sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import mlx.core as mx

from ..arrays.dtypes import dtype_of
from ..arrays.types import Array, Dtype, Flat
from ..comm.share_sums import ShareSums
from ..layout.entries import Entry


class LocalGradients:
    """The gradients of a step on their way to the other ranks.

    Args:
        unsent: all of them; each is dropped from the dict when its bucket is sent.
        dtype: that of the gradient of a parameter whose dtype has this name.
        keeps: whether someone else holds them until the step is taken anyway.
        loss: that they are gradients of, where it is known.

    Attributes:
        is_reusable: whether nobody else refers to them, so that their memory may be
            reused.
        kept: all of them until the step is taken, or none.
        earlier: sums of micro-batches of which these are the last one.
    """

    def __init__(
        self,
        unsent: Flat,
        dtype: Callable[[str], Dtype] = dtype_of,
        *,
        keeps: bool,
        loss: Array = None,
    ):
        self.unsent, self.loss = unsent, loss
        self.is_reusable = not keeps
        self.earlier: ShareSums | None = None
        self.kept: Flat = dict(unsent) if keeps else {}
        self._dtype = dtype

    def use_zeros(self, entries: Iterable[Entry]) -> Flat:
        """After an error: replace all of them by zeros, and return those."""
        self.unsent = {e.path: mx.zeros(e.shape, self._dtype(e.dtype)) for e in entries}
        self.kept = dict(self.unsent)
        return self.unsent
