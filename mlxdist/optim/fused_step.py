"""One leaf optimizer's step on its pieces of one bucket, compiled where that is faster.

`PieceStep` steps each piece by itself. `FusedStep` steps many small pieces as one flat
array: a few kernels instead of thousands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise, repeat
from operator import is_

import mlx.core as mx
import numpy as np

from ..arrays import device
from ..arrays.concat import Chunk, Join, Split
from ..arrays.dtypes import dtype_name, dtype_of
from ..arrays.numpy_view import adjacent, from_raw, raw
from ..arrays.trees import cut
from ..arrays.types import Array, Dtype, Pieces
from ..layout.entries import Entry
from ..layout.paths import KeyPath
from ..layout.sharding import Piece, Strategy
from ..layout.state_blocks import BLOCK
from .hyperparameters import Optimizer
from .inner_optimizer import ELEMENTWISE, Leaf
from .quantized_state import CODES, SCALES
from .quantized_step import (
    Key,
    Moments,
    State,
    apply_quantized,
    leaf_at,
    leaf_keys,
    put_leaf,
    update_dtype,
)
from .weight_copies import WeightCopies

_RULES = {kind: kind.apply_single for kind in ELEMENTWISE}


def scaled(gradient: Array, dtype: Dtype, scale: Array | None) -> Array:
    """Return a gradient in `dtype`, times the factor that clips and unscales it."""
    gradient = gradient.astype(dtype)
    return gradient if scale is None else (gradient * scale).astype(dtype)


def fitted(
    stepped: object, parameter: Array, path: KeyPath, optimizer: Optimizer
) -> Array:
    """Return a user's new parameter in the dtype of the old one.

    Raises:
        ValueError: where it is no array of the same shape.
    """
    shape = tuple(parameter.shape)
    if isinstance(stepped, mx.array) and tuple(stepped.shape) == shape:
        return stepped.astype(parameter.dtype)
    kind = type(stepped).__name__
    text = list(stepped.shape) if isinstance(stepped, mx.array) else f"a {kind}"
    raise ValueError(
        f"{type(optimizer).__name__} returned {text} as the new {path}, wanted an "
        f"mx.array of shape {list(shape)}"
    )


class PieceStep:
    """A leaf optimizer's step on pieces of one bucket, one by one.

    Args:
        strategy: how the plan cuts parameters.
        pieces: those of the bucket that the leaf updates.
        copies: master and EMA weights.
        moments: those in 8 bits, of all pieces.
        compiled: whether to compile the step, where the leaf is one of MLX's own
            elementwise optimizers and one kernel is faster.
    """

    def __init__(
        self,
        leaf: Leaf,
        strategy: Strategy,
        pieces: Sequence[Piece],
        copies: WeightCopies,
        moments: Moments = (),
        *,
        compiled: bool,
    ):
        self._leaf = leaf.optimizer
        self._is_known = leaf.is_known
        self._strategy = strategy
        self._pieces = pieces
        self._copies = copies
        self._moments = moments
        dtypes = [copies.update_dtype(dtype_of(p.entry.dtype)) for p in pieces]
        self._dtypes = [update_dtype(dtype, moments) for dtype in dtypes]
        self._compiled: Callable[..., tuple[Pieces, list[State]]] | None = None
        if (
            compiled
            and leaf.can_be_compiled
            and device.fits_one_kernel(self._dtypes[0])
        ):
            self._compiled = mx.compile(self._pure)

    @property
    def is_compiled(self) -> bool:
        return self._compiled is not None

    def __call__(
        self,
        gradients: Pieces,
        parameters: Pieces,
        states: Sequence[State],
        scale: Array | None,
    ) -> Pieces:
        """Return the new values of the pieces, and update `states`.

        Args:
            gradients: the means of the pieces, in float32 or their own dtype.
            parameters: whole ones.
        """
        if self._compiled is None:
            return self._apply(gradients, parameters, states, scale)
        scalars = {k: v for k, v in self._leaf.state.items() if isinstance(v, mx.array)}
        stepped, new = self._compiled(gradients, parameters, states, scalars, scale)
        for state, arrays in zip(states, new, strict=True):
            state.update(arrays)
        return stepped

    def _apply(
        self,
        gradients: Pieces,
        parameters: Pieces,
        states: Sequence[State],
        scale: Array | None,
    ) -> Pieces:
        leaf = self._leaf
        local = [
            cut(parameter, piece, self._strategy)
            for parameter, piece in zip(parameters, self._pieces, strict=True)
        ]
        stepped = [
            self._apply_one(scaled(gradient, dtype, scale), parameter, state)
            for dtype, gradient, parameter, state in zip(
                self._dtypes, gradients, local, states, strict=True
            )
        ]
        if self._is_known:
            return stepped
        return [
            fitted(new, parameter, piece.entry.path, leaf)
            for new, parameter, piece in zip(stepped, local, self._pieces, strict=True)
        ]

    def _apply_one(self, gradient: Array, parameter: Array, state: State) -> Array:
        copies, leaf, moments = self._copies, self._leaf, self._moments
        if not moments:
            return copies.apply(leaf, gradient, parameter, state)
        return apply_quantized(copies, leaf, moments, gradient, parameter, state)

    def _pure(
        self,
        gradients: Pieces,
        parameters: Pieces,
        states: Sequence[State],
        scalars: State,
        scale: Array | None,
    ) -> tuple[Pieces, list[State]]:
        """`_apply` for mx.compile: no side effects, all arrays are arguments."""
        new = [dict(state) for state in states]
        saved, self._leaf._state = self._leaf._state, dict(scalars)
        try:
            return self._apply(gradients, parameters, new, scale), new
        finally:
            self._leaf._state = saved


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
            [gradient], [self._local_flat(parameters)], [state], scale
        )
        self._flat = {key: leaf_at(state, key) for key in leaf_keys(state)}
        for key, flat in self._flat.items():
            views = self._views[key] = self._splits.get(key[-1], self._split)(flat)
            for piece_state, view in zip(states, views, strict=True):
                put_leaf(piece_state, key, view)
        return Chunk(self._split, flat=stepped)

    def _flat_state(self, key: Key, states: Sequence[State]) -> Array:
        """The flat state; joined again where a view was replaced."""
        parts = [leaf_at(state, key) for state in states]
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
