"""One leaf optimizer's step on a bucket of small pieces, as one flat array.

A few kernels instead of thousands.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise, repeat
from operator import is_

import mlx.core as mx
import numpy as np

from ..arrays import device
from ..arrays.blockwise import numbers_of_blocks
from ..arrays.concat import Chunk, Join, Split
from ..arrays.dtypes import dtype_name
from ..arrays.numpy_view import adjacent, from_raw, raw
from ..arrays.trees import cut
from ..arrays.types import Array, Pieces
from ..layout.entries import Entry
from ..layout.paths import KeyPath
from ..layout.sharding import Piece, Strategy
from ..layout.state_blocks import BLOCK
from .inner_optimizer import ELEMENTWISE, Leaf
from .piece_step import PieceStep
from .quantized_state import CODES, SCALES
from .quantized_step import (
    Key,
    Moments,
    State,
    leaf_at,
    leaf_keys,
    leaves_at,
    put_leaf,
    put_leaves,
)
from .weight_copies import WeightCopies

_RULES = {kind: kind.apply_single for kind in ELEMENTWISE}


def can_be_fused(leaf: Leaf) -> bool:
    """Return whether a leaf may now step many tensors as one flat array."""
    kind = type(leaf.optimizer)
    return leaf.can_be_compiled and kind.apply_single is _RULES[kind]


class FusedStep:
    """A leaf optimizer's step on a whole bucket of small pieces as one flat array.

    For elementwise optimizers. State is kept flat; the optimizer's own state has views
    of it for each parameter.
    """

    def __init__(
        self,
        leaf: Leaf,
        strategy: Strategy,
        bucket: Sequence[Piece],
        copies: WeightCopies,
        moments: Moments = (),
        *,
        compiled: bool,
    ):
        self._leaf = leaf
        self._bucket = bucket
        self._strategy = strategy
        self._moments = moments
        offsets = [0, *accumulate(piece.stop - piece.start for piece in bucket)]
        size = self._size = offsets[-1]
        whole = Piece(Entry(KeyPath(), (size,), bucket[0].entry.dtype), 0, size, 0)
        self._step = PieceStep(
            leaf, "replicated", [whole], copies, moments, compiled=compiled
        )
        self._joins: dict[str, Join] = {}
        self._split = Split(offsets, [piece.shape(strategy) for piece in bucket])
        rows = [offset // BLOCK for offset in offsets]
        counts = [stop - start for start, stop in pairwise(rows)]
        self._splits = {
            CODES: Split(rows, [(count, BLOCK) for count in counts]),
            SCALES: Split(rows, [(count,) for count in counts]),
        }
        self._flat: dict[Key, Array] = {}
        self._views: dict[Key, Pieces] = {}

    @property
    def applies(self) -> bool:
        """Whether the leaf may still be fused: its attributes may have changed."""
        return can_be_fused(self._leaf)

    def __call__(
        self,
        mean: Chunk,
        parameters: Pieces,
        states: Sequence[State],
        scale: Array | None,
    ) -> Chunk:
        """Return the new values; `states` get views of the new state."""
        gradient = mean.flat(self._join_of(mean.arrays))
        state: State = {}
        for key in leaf_keys(states[0]):
            put_leaf(state, key, self._flat_state(key, states))
        (stepped,) = self._step(
            [gradient], [self._local_flat(parameters)], [state], scale, self._blocks()
        )
        self._flat = {key: leaf_at(state, key) for key in leaf_keys(state)}
        for key, flat in self._flat.items():
            views = self._views[key] = self._splits.get(key[-1], self._split)(flat)
            put_leaves(states, key, views)
        return Chunk(self._split, flat=stepped)

    def _blocks(self) -> Pieces:
        """The numbers of all blocks, each in its own tensor."""
        if not self._moments:
            return [None]
        return [numbers_of_blocks((piece.start, piece.stop) for piece in self._bucket)]

    def _flat_state(self, key: Key, states: Sequence[State]) -> Array:
        """The flat state; joined again where a view was replaced."""
        parts = leaves_at(states, key)
        views = self._views.get(key)
        if views is not None and all(map(is_, parts, views)):
            return self._flat[key]
        flat = self._join_of(parts)(parts)
        return flat.reshape(-1, BLOCK) if key[-1] == CODES else flat

    def _join_of(self, parts: Pieces) -> Join:
        """The join for the parts' dtype, which is not always the parameters'."""
        dtype = dtype_name(parts[0].dtype)
        if dtype not in self._joins:
            self._joins[dtype] = Join(dtype)
        return self._joins[dtype]

    def _local_flat(self, parameters: Pieces) -> Array:
        """This rank's pieces of whole parameters, as one flat array."""
        if not device.on_cpu():
            parts = map(cut, parameters, self._bucket, repeat(self._strategy))
            return mx.concatenate([part.reshape(-1) for part in parts])
        whole = adjacent(parameters)  # those of the last step are views of one vector
        if whole is not None:
            start = self._bucket[0].start
            return whole[start : start + self._size]
        # MLX schedules one task per array; for small arrays that costs more than the
        # copy.
        bits = np.dtype(f"u{parameters[0].itemsize}")
        pieces = [
            raw(array, bits)[piece.start : piece.stop]
            for array, piece in zip(parameters, self._bucket, strict=True)
        ]
        return from_raw(pieces, parameters[0].dtype)


def select(items: Sequence[Array], indices: Iterable[int]) -> Pieces:
    """Return the items at some indices."""
    return [items[index] for index in indices]
