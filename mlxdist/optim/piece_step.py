"""One leaf optimizer's step on pieces of one bucket, compiled where that is faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx

from ..arrays import device
from ..arrays.blockwise import numbers_of_blocks
from ..arrays.dtypes import dtype_of
from ..arrays.trees import cut
from ..arrays.types import Array, Dtype, Pieces
from ..layout.paths import KeyPath
from ..layout.sharding import Piece, Strategy
from .hyperparameters import Optimizer
from .inner_optimizer import Leaf
from .quantized_step import (
    Moments,
    State,
    apply_wide,
    quantized,
    quantized_by_host,
    update_dtype,
    widened,
    widened_by_host,
)
from .weight_copies import WeightCopies


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
        # Those that the host widens and quantizes around the compiled kernel.
        is_around = self._compiled is not None and not device.fuses_blocks()
        self._around = moments if is_around else ()

    @property
    def is_compiled(self) -> bool:
        return self._compiled is not None

    def __call__(
        self,
        gradients: Pieces,
        parameters: Pieces,
        states: Sequence[State],
        scale: Array | None,
        blocks: Pieces | None = None,
    ) -> Pieces:
        """Return the new values of the pieces, and update `states`.

        Args:
            gradients: the means of the pieces, in float32 or their own dtype.
            parameters: whole ones.
            blocks: the numbers of the pieces' blocks, where moments are in 8 bits.
                None: as the pieces say.
        """
        if blocks is None:
            blocks = [self._blocks_of(piece) for piece in self._pieces]
        if self._compiled is None:
            return self._apply(gradients, parameters, states, scale, blocks)
        scalars = {k: v for k, v in self._leaf.state.items() if isinstance(v, mx.array)}
        wide = states
        if self._around:
            wide = [
                widened_by_host(state, self._around, gradient.shape)
                for state, gradient in zip(states, gradients, strict=True)
            ]
        stepped, new = self._compiled(
            gradients, parameters, wide, scalars, scale, blocks
        )
        del wide  # so that MLX may write over moments in float32
        if self._around:
            stepped, new = self._quantized(stepped, new, blocks)
        for state, arrays in zip(states, new, strict=True):
            state.update(arrays)
        return stepped

    def _blocks_of(self, piece: Piece) -> Array | None:
        spans = [(piece.start, piece.stop)]
        return numbers_of_blocks(spans) if self._moments else None

    def _apply(
        self,
        gradients: Pieces,
        parameters: Pieces,
        states: Sequence[State],
        scale: Array | None,
        blocks: Pieces,
    ) -> Pieces:
        leaf = self._leaf
        local = [
            cut(parameter, piece, self._strategy)
            for parameter, piece in zip(parameters, self._pieces, strict=True)
        ]
        stepped = [
            self._apply_one(scaled(gradient, dtype, scale), parameter, state, numbers)
            for dtype, gradient, parameter, state, numbers in zip(
                self._dtypes, gradients, local, states, blocks, strict=True
            )
        ]
        if self._is_known:
            return stepped
        return [
            fitted(new, parameter, piece.entry.path, leaf)
            for new, parameter, piece in zip(stepped, local, self._pieces, strict=True)
        ]

    def _apply_one(
        self, gradient: Array, parameter: Array, state: State, blocks: Array | None
    ) -> Array:
        copies, leaf = self._copies, self._leaf
        if not self._moments:
            return copies.apply(leaf, gradient, parameter, state)
        if self._around:
            return apply_wide(copies, leaf, gradient, parameter, state)
        wide = widened(state, self._moments, parameter.shape)
        stepped = apply_wide(copies, leaf, gradient, parameter, wide)
        (new,), (arrays,) = self._quantized([stepped], [wide], [blocks])
        state.update(arrays)
        return new

    def _quantized(
        self, stepped: Pieces, states: Sequence[State], blocks: Pieces
    ) -> tuple[Pieces, list[State]]:
        """New parameters and states, with moments in 8 bits."""
        step = self._leaf.state["step"]
        quantize = quantized_by_host if self._around else quantized
        pairs = [
            quantize(new, wide, self._moments, step, numbers)
            for new, wide, numbers in zip(stepped, states, blocks, strict=True)
        ]
        return [new for new, _ in pairs], [state for _, state in pairs]

    def _pure(
        self,
        gradients: Pieces,
        parameters: Pieces,
        states: Sequence[State],
        scalars: State,
        scale: Array | None,
        blocks: Pieces,
    ) -> tuple[Pieces, list[State]]:
        """`_apply` for mx.compile: no side effects, all arrays are arguments."""
        new = [dict(state) for state in states]
        saved, self._leaf._state = self._leaf._state, dict(scalars)
        try:
            return self._apply(gradients, parameters, new, scale, blocks), new
        finally:
            self._leaf._state = saved
