"""One leaf optimizer's step on its pieces of one bucket, compiled where it can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat
from operator import is_
from typing import Any

import mlx.core as mx
import numpy as np

from ..arrays.concat import Join, Split
from ..arrays.numpy_view import as_one, raw
from ..arrays.trees import dtype_name
from ..arrays.types import Array, Flat, Pieces
from ..layout.entries import Entry
from ..layout.sharding import Piece, Plan, Strategy
from .inner import ELEMENTWISE
from .masters import Beside

State = dict[str, Any]


def cut_all(parameters: Flat, pieces: Sequence[tuple[Piece, ...]], plan: Plan) -> Flat:
    """This rank's shard of arrays that every rank has whole; nothing travels."""
    return {
        piece.entry.path: cut(parameters[piece.entry.path], piece, plan.strategy)
        for bucket in pieces
        for piece in bucket
    }


def cut(array: Array, piece: Piece, strategy: Strategy) -> Array:
    """A piece of a whole array: 1-D where the plan cuts elements."""
    if strategy != "elements":
        return array
    return array.reshape(-1)[piece.start : piece.stop]


def clipped(gradient: Array, dtype: Any, scale: Array | None) -> Array:
    gradient = gradient.astype(dtype)
    return gradient if scale is None else (gradient * scale).astype(dtype)


def compiling_pays(dtype: Any) -> bool:
    """Whether one fused kernel is faster than MLX's own one by one.

    On a CPU it is a plain loop, which for 16-bit numbers, converted at each operation,
    takes three times as long as the vectorized kernels take together.
    """
    return bool(dtype.size > 2) or mx.default_device() != mx.cpu


class Step:
    """One leaf optimizer's step on its pieces of one bucket."""

    def __init__(
        self,
        leaf: Any,
        strategy: Strategy,
        indices: list[int],
        bucket: Sequence[Piece],
        beside: Beside,
    ):
        self.leaf = leaf
        self._strategy = strategy
        self._indices = indices
        self._pieces = [bucket[index] for index in indices]
        self._beside = beside
        self._dtypes = [beside.wide(getattr(mx, p.entry.dtype)) for p in self._pieces]
        self._compiled: Callable[..., Any] | None = None

    @classmethod
    def compile(cls, leaf: Any, dtype: str, beside: Beside, *, scales: bool) -> None:
        """Takes a step with two elements, which compiles the kernel of all sizes."""
        piece = Piece(Entry("", (2,), dtype), 0, 2, 0)
        ones = mx.ones(2, getattr(mx, dtype))
        state: dict[str, Any] = {}
        leaf.init_single(ones.astype(beside.wide(ones.dtype)), state)
        beside.add("", ones, state)
        step = cls(leaf, "elements", [0], [piece], beside)
        step.use_compiled()
        scale = mx.array(1.0) if scales else None
        stepped: Pieces = [None]
        step([mx.ones(2)], [ones], [state], scale, stepped, traced=False)
        mx.eval(stepped, state)

    def use_compiled(self) -> None:
        if type(self.leaf) in ELEMENTWISE and compiling_pays(self._dtypes[0]):
            self._compiled = mx.compile(self._pure)

    def __call__(
        self,
        gradients: Pieces,
        parameters: Pieces,
        states: Sequence[dict[str, Any]],
        scale: Array | None,
        stepped: Pieces,
        *,
        traced: bool,
    ) -> None:
        indices = self._indices
        given = [gradients[index] for index in indices]
        own = [parameters[index] for index in indices]
        held = [states[index] for index in indices]
        if self._compiled is None or traced:
            _place(stepped, indices, self._apply(given, own, held, scale))
            return
        scalars = {k: v for k, v in self.leaf.state.items() if isinstance(v, mx.array)}
        pieces, new = self._compiled(given, own, held, scalars, scale)
        _place(stepped, indices, pieces)
        for state, arrays in zip(held, new, strict=True):
            state.update(arrays)

    def _apply(
        self,
        gradients: Pieces,
        parameters: Pieces,
        states: Sequence[dict[str, Any]],
        scale: Array | None,
    ) -> Pieces:
        apply, leaf, strategy = self._beside.apply, self.leaf, self._strategy
        return [
            apply(
                leaf,
                clipped(gradient, dtype, scale),
                cut(own, piece, strategy),
                state,
            )
            for piece, dtype, gradient, own, state in zip(
                self._pieces, self._dtypes, gradients, parameters, states, strict=True
            )
        ]

    def _pure(
        self,
        gradients: Pieces,
        parameters: Pieces,
        states: Sequence[dict[str, Any]],
        scalars: dict[str, Array],
        scale: Array | None,
    ) -> tuple[Pieces, list[dict[str, Any]]]:
        """The same for mx.compile: without side effects, all arrays as arguments."""
        held = [dict(state) for state in states]
        kept, self.leaf._state = self.leaf._state, dict(scalars)
        try:
            return self._apply(gradients, parameters, held, scale), held
        finally:
            self.leaf._state = kept


def _place(stepped: Pieces, indices: Sequence[int], pieces: Pieces) -> None:
    for index, piece in zip(indices, pieces, strict=True):
        stepped[index] = piece


class FlatStep:
    """The step on many small pieces as if they were one.

    For optimizers that treat each element by itself: one kernel instead of thousands.
    State is kept flat; what the optimizer's own state holds for each path are views.
    """

    def __init__(
        self, leaf: Any, strategy: Strategy, bucket: Sequence[Piece], beside: Beside
    ):
        self._bucket = bucket
        self._strategy = strategy
        dtype = bucket[0].entry.dtype
        bounds, size = [], 0
        for piece in bucket:
            bounds.append((size, size + piece.stop - piece.start))
            size = bounds[-1][1]
        whole = Piece(Entry("", (size,), dtype), 0, size, 0)
        self._step = Step(leaf, "replicated", [0], [whole], beside)
        self._step.use_compiled()
        self._joins: dict[str, Join] = {}
        self._split = Split(bounds, [piece.shape(strategy) for piece in bucket])
        self._flat: State = {}
        self._views: dict[str, Pieces] = {}

    def __call__(
        self,
        gradients: Array | Pieces,
        parameters: Pieces,
        states: Sequence[State],
        scale: Array | None,
    ) -> Array:
        """The new values, flat; `states` get views of the new state."""
        if isinstance(gradients, list):
            gradients = self._joined(gradients)
        state = {key: self._held(key, states) for key in states[0]}
        stepped: Pieces = [None]
        own = self._own(parameters)
        self._step([gradients], [own], [state], scale, stepped, traced=False)
        self._flat = state
        for key, flat in state.items():
            views = self._views[key] = self._split(flat, traced=False)
            for held, view in zip(states, views, strict=True):
                held[key] = view
        return stepped[0]

    def _held(self, key: str, states: Sequence[State]) -> Array:
        """The flat state, made anew where somebody has put something else in place."""
        parts = [state[key] for state in states]
        views = self._views.get(key)
        if views is not None and all(map(is_, parts, views)):
            return self._flat[key]
        return self._joined(parts)

    def _joined(self, parts: Pieces) -> Array:
        """In the dtype that they have, which is not the parameters' for all of them."""
        dtype = dtype_name(parts[0].dtype)
        if dtype not in self._joins:
            self._joins[dtype] = Join(dtype)
        return self._joins[dtype](parts, traced=False)

    def _own(self, parameters: Pieces) -> Array:
        if mx.default_device() != mx.cpu:
            parts = map(cut, parameters, self._bucket, repeat(self._strategy))
            return mx.concatenate([part.reshape(-1) for part in parts])
        # MLX copies each of them in a task of its own, which takes longer than to copy.
        mx.eval(parameters)
        bits = np.dtype(f"u{parameters[0].itemsize}")
        own = [
            raw(array, bits)[piece.start : piece.stop]
            for array, piece in zip(parameters, self._bucket, strict=True)
        ]
        return as_one(own, parameters[0].dtype)
