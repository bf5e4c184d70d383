"""The weighted mean over the ranks: weights, order of addition, division.

A lazy transport weights what it sends and divides what it gets. A transport that adds
by itself weights each rank's contribution as it arrives, in rank order, and measures
the squares of the mean while it is in the cache. The rules are the same and stand here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ..arrays.numpy_view import decode
from ..arrays.pairwise_sum import pairwise_sum
from ..arrays.types import Array, Pieces, Raw


class Weights(NamedTuple):
    """How much each rank's gradients count in the mean.

    Attributes:
        local: this rank's; an array while `mx.compile` traces one.
        every: those of all ranks, or None while tracing: the other ranks' are not known
            before the compiled step runs.
        total: their sum; an array where `local` is one.
        pairwise: add the ranks in pairs (see pairwise_sum.py), so that the sum has the
            same bits on any number of ranks; otherwise one after the other.
    """

    local: Array
    every: tuple[float, ...] | None
    total: Array
    pairwise: bool = False

    @classmethod
    def known(cls, rank: int, every: Sequence[float]) -> Weights:
        """Weights of gradients, known on all ranks."""
        return cls(every[rank], tuple(every), sum(every))

    @classmethod
    def of_sums(cls, every: Sequence[float], *, pairwise: bool) -> Weights:
        """Weights of weighted sums: each counts once, and the total divides."""
        total = pairwise_sum(every) if pairwise else sum(every)
        return cls(1.0, (1.0,) * len(every), total, pairwise)

    def summed(self, add: Callable[[Array], Array], behind: Pieces) -> Weights:
        """Return traced weights with their sum.

        Args:
            add: sums a scalar over the ranks.
            behind: what is sent next. The scalar is not sent before: MPI polls, so a
                rank that waits for the others' weights would slow its own computation.
        """
        return self._replace(total=add(mx.depends([self.local], behind)[0]))


def weigh(flat: Array, weights: Weights) -> Array:
    """Multiply an array by this rank's weight. Lazy.

    Zeros where the weight is 0: a rank without examples may have nan gradients.
    """
    if weights.every is None:
        local = weights.local.astype(flat.dtype)
        return mx.where(local == 0, mx.array(0, flat.dtype), flat * local)
    if weights.local == 0:
        return mx.zeros_like(flat)
    return flat if weights.local == 1 else flat * mx.array(weights.local, flat.dtype)


def combine(
    parts: Sequence[Raw], weights: Weights, *, is_bfloat16: bool, out: Raw
) -> float:
    """Write the weighted mean of every rank's numbers to `out`.

    Args:
        parts: each rank's, as they travelled, in rank order.
        is_bfloat16: whether they are the bits of bfloat16.
        out: at most `BLOCK` numbers, to stay in the cache: float32, or float64 where
            the numbers are.

    Returns:
        The sum of squares of the mean; inf where it is not finite.
    """
    assert weights.every is not None, "this transport cannot be traced"
    terms = [
        _weighted(part, weight, is_bfloat16, out.dtype)
        for part, weight in zip(parts, weights.every, strict=True)
        if weight
    ]
    if weights.pairwise:
        terms = [pairwise_sum(terms)]
    if len(terms) == 1:
        out[:] = terms[0]
    else:
        np.add(terms[0], terms[1], out)
    for term in terms[2:]:
        np.add(out, term, out)
    if weights.total != 1:
        _divide(out, weights.total)
    squares = float(np.dot(out, out))
    return squares if math.isfinite(squares) else math.inf


def _divide(numbers: Raw, total: float) -> None:
    """Divide numbers in place. A power of 2 has an exact inverse, which is faster."""
    mantissa, exponent = math.frexp(total)
    if mantissa == 0.5 and abs(exponent) < 100:
        np.multiply(numbers, numbers.dtype.type(1 / total), numbers)
    else:
        np.divide(numbers, numbers.dtype.type(total), numbers)


def _weighted(
    part: Raw, weight: float, is_bfloat16: bool, dtype: np.dtype[np.generic]
) -> Raw:
    numbers = decode(part, is_bfloat16, dtype)
    return numbers if weight == 1 else numbers * dtype.type(weight)
