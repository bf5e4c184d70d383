"""The wrapped optimizer's step on this rank's pieces, bucket by bucket.

What MLX does for a whole tree at once in `apply_gradients` is done here for the pieces
of one bucket at a time, so that a bucket can be on its way to the other ranks while the
next is computed, and so that one bucket's memory is enough for all. Optimizers that
treat each element by itself are compiled, each bucket of them once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten

from .collectives import Array
from .layout import Entry
from .sharding import Piece, Plan, Strategy
from .structure import Structure
from .trees import Flat, nested
from .wrapped import ELEMENTWISE, leaves, owner_of

Pieces = list[Array]

# Compiling takes a second for each kind of kernel. Which models are is a question of
# their whole size alone, so that it is the same on any number of ranks: not all
# devices give the same bits compiled.
COMPILED_FROM = 2**20  # bytes of parameters


class Update:
    """An optimizer's step on the pieces of a plan that one rank holds.

    Args:
        optimizer: a resolved one, with its state set up.
        plan: which bucket holds what.
        pieces: this rank's, for each bucket.
    """

    def __init__(
        self,
        optimizer: Any,
        plan: Plan,
        pieces: Sequence[tuple[Piece, ...]],
    ):
        self._optimizer = optimizer
        self._plan = plan
        self._pieces = pieces
        self._leaves = leaves(optimizer)
        # A class that does more than MLX's base in apply_gradients gets all at once.
        self._whole = any(
            type(leaf).apply_gradients is not optim.Optimizer.apply_gradients
            for leaf in self._leaves
        )
        self._states = {
            id(leaf): Structure(
                p.entry.path
                for bucket in pieces
                for p in bucket
                if owner_of(optimizer, p.entry.path) is leaf
            )
            for leaf in self._leaves
        }
        self._steps = [
            [
                _Step(leaf, plan.strategy, indices, bucket)
                for leaf, indices in self._by_leaf(bucket)
            ]
            for bucket in pieces
        ]

    def compile(self, *, clips: bool) -> str | None:
        """Makes the kernels that steps need, or says why they can't be made.

        On a CPU that calls a C++ compiler.
        """
        kinds = {
            (id(owner_of(self._optimizer, e.path)), e.dtype): e
            for e in self._plan.entries
        }
        try:
            for entry in kinds.values():
                leaf = owner_of(self._optimizer, entry.path)
                _Step.compile(leaf, entry.dtype, clips=clips)
        except RuntimeError as error:
            return str(error)
        return None

    def use_compiled(self) -> None:
        for bucket in self._steps:
            for step in bucket:
                step.use_compiled()

    def _by_leaf(self, bucket: Sequence[Piece]) -> list[tuple[Any, list[int]]]:
        groups: dict[int, list[int]] = {}
        for index, piece in enumerate(bucket):
            leaf = owner_of(self._optimizer, piece.entry.path)
            groups.setdefault(id(leaf), []).append(index)
        return [(x, groups[id(x)]) for x in self._leaves if id(x) in groups]

    def each(
        self,
        means: Iterable[tuple[int, Pieces]],
        parameters: Flat,
        scale: Array | None,
        *,
        traced: bool,
    ) -> Iterator[tuple[int, Pieces]]:
        """Steps each bucket as its gradients come.

        Args:
            means: for each bucket its index and the mean gradients of this rank's
                pieces, in float32 or their own dtype.
            parameters: whole ones, by path; each is dropped once it was used.
            scale: what gradients are multiplied with, to clip them.
            traced: whether `mx.compile` is tracing.

        Yields:
            The index and the new values of the pieces, lazy.
        """
        self._set_up(parameters)
        if self._whole:
            yield from self._at_once(means, parameters, scale)
            return
        for leaf in self._leaves:
            _tick(leaf)
        held: Flat = {}
        for leaf in self._leaves:
            held.update(self._states[id(leaf)].flat(leaf.state))
        for index, gradients in means:
            bucket = self._pieces[index]
            own = [parameters.pop(piece.entry.path) for piece in bucket]
            states = [held[piece.entry.path] for piece in bucket]
            stepped: Pieces = [None] * len(bucket)
            for step in self._steps[index]:
                step(gradients, own, states, scale, stepped, traced=traced)
            del own, gradients
            yield index, stepped

    def _set_up(self, parameters: Flat) -> None:
        # As MLX does at the next step, where the user has set another state.
        if all(leaf._initialized for leaf in self._leaves):
            return
        self._optimizer.init(nested(cut_all(parameters, self._pieces, self._plan)))

    def _at_once(
        self,
        means: Iterable[tuple[int, Pieces]],
        parameters: Flat,
        scale: Array | None,
    ) -> Iterator[tuple[int, Pieces]]:
        mean = {
            piece.entry.path: _clipped(gradient, piece, scale)
            for index, gradients in means
            for piece, gradient in zip(self._pieces[index], gradients, strict=True)
        }
        own = cut_all(parameters, self._pieces, self._plan)
        parameters.clear()
        stepped = self._optimizer.apply_gradients(nested(mean), nested(own))
        flat = dict(tree_flatten(stepped))
        for index, bucket in enumerate(self._pieces):
            yield index, [flat[piece.entry.path] for piece in bucket]


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


def _tick(leaf: Any) -> None:
    """What `Optimizer.apply_gradients` does before it looks at any parameter."""
    for name, schedule in leaf._schedulers.items():
        leaf.state[name] = schedule(leaf.step)
    leaf.state["step"] = leaf.step + 1


def _clipped(gradient: Array, piece: Piece, scale: Array | None) -> Array:
    dtype = getattr(mx, piece.entry.dtype)
    gradient = gradient.astype(dtype)
    return gradient if scale is None else (gradient * scale).astype(dtype)


class _Step:
    """One leaf optimizer's step on its pieces of one bucket."""

    def __init__(
        self, leaf: Any, strategy: Strategy, indices: list[int], bucket: Sequence[Piece]
    ):
        self._leaf = leaf
        self._strategy = strategy
        self._indices = indices
        self._pieces = [bucket[index] for index in indices]
        self._compiled: Callable[..., Any] | None = None

    @classmethod
    def compile(cls, leaf: Any, dtype: str, *, clips: bool) -> None:
        """Takes a step with two elements, which compiles the kernel of all sizes."""
        piece = Piece(Entry("", (2,), dtype), 0, 2, 0)
        ones = mx.ones(2, getattr(mx, dtype))
        state: dict[str, Any] = {}
        leaf.init_single(ones, state)
        step = cls(leaf, "elements", [0], [piece])
        step.use_compiled()
        scale = mx.array(1.0) if clips else None
        stepped: Pieces = [None]
        step([mx.ones(2)], [ones], [state], scale, stepped, traced=False)
        mx.eval(stepped, state)

    def use_compiled(self) -> None:
        if type(self._leaf) in ELEMENTWISE:
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
        scalars = {k: v for k, v in self._leaf.state.items() if isinstance(v, mx.array)}
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
        return [
            self._leaf.apply_single(
                _clipped(gradient, piece, scale), cut(own, piece, self._strategy), state
            )
            for piece, gradient, own, state in zip(
                self._pieces, gradients, parameters, states, strict=True
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
        kept, self._leaf._state = self._leaf._state, dict(scalars)
        try:
            return self._apply(gradients, parameters, held, scale), held
        finally:
            self._leaf._state = kept


def _place(stepped: Pieces, indices: Sequence[int], pieces: Pieces) -> None:
    for index, piece in zip(indices, pieces, strict=True):
        stepped[index] = piece
