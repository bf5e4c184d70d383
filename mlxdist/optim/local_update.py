"""The wrapped optimizer's step on this rank's pieces, bucket by bucket.

What MLX does for a whole tree at once in `apply_gradients` is done here for the pieces
of one bucket at a time, so that a bucket can be on its way to the other ranks while the
next is computed, and so that one bucket's memory is enough for all. Optimizers that
treat each element by itself are compiled, each bucket of them once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten

from ..arrays.concat import Split
from ..arrays.tree_index import Structure
from ..arrays.trees import nested
from ..arrays.types import Array, Flat, Pieces
from ..layout.sharding import Piece, Plan
from .fused_step import FlatStep, Step, clipped, compiling_pays, cut_all
from .inner import ELEMENTWISE, leaves, owner_of
from .masters import Beside

Chunk = Array | Pieces

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
        beside: what is kept beside the optimizer's own state.
    """

    def __init__(
        self,
        optimizer: Any,
        plan: Plan,
        pieces: Sequence[tuple[Piece, ...]],
        beside: Beside,
    ):
        self._optimizer = optimizer
        self._plan = plan
        self._pieces = pieces
        self._beside = beside
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
                Step(leaf, plan.strategy, indices, bucket, beside)
                for leaf, indices in self._by_leaf(bucket)
            ]
            for bucket in pieces
        ]
        self._flats: list[FlatStep | None] = [None] * len(self._steps)
        self._splits = [
            Split(
                [(p.offset, p.offset + p.stop - p.start) for p in bucket],
                [p.shape(plan.strategy) for p in bucket],
            )
            for bucket in pieces
        ]

    def compile(self, *, scales: bool) -> str | None:
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
                wide = self._beside.wide(getattr(mx, entry.dtype))
                if type(leaf) not in ELEMENTWISE or not compiling_pays(wide):
                    continue
                Step.compile(leaf, entry.dtype, self._beside, scales=scales)
        except RuntimeError as error:
            return str(error)
        return None

    def use_compiled(self) -> None:
        """From now on steps are compiled, and small pieces are stepped together."""
        for index, steps in enumerate(self._steps):
            for step in steps:
                step.use_compiled()
            bucket = self._pieces[index]
            if (
                len(bucket) > 1
                and len(steps) == 1
                and type(steps[0].leaf) in ELEMENTWISE
            ):
                leaf = steps[0].leaf
                self._flats[index] = FlatStep(
                    leaf, self._plan.strategy, bucket, self._beside
                )

    def _by_leaf(self, bucket: Sequence[Piece]) -> list[tuple[Any, list[int]]]:
        groups: dict[int, list[int]] = {}
        for index, piece in enumerate(bucket):
            leaf = owner_of(self._optimizer, piece.entry.path)
            groups.setdefault(id(leaf), []).append(index)
        return [(x, groups[id(x)]) for x in self._leaves if id(x) in groups]

    def each(
        self,
        means: Iterable[tuple[int, Chunk]],
        parameters: Flat,
        scale: Array | None,
        *,
        traced: bool,
    ) -> Iterator[tuple[int, Chunk]]:
        """Steps each bucket as its gradients come.

        Args:
            means: for each bucket its index and the mean gradients of this rank's
                pieces, flat or in a list, in float32 or their own dtype.
            parameters: whole ones, by path; each is dropped once it was used.
            scale: what gradients are multiplied with, to clip them.
            traced: whether `mx.compile` is tracing.

        Yields:
            The index and the new values of the pieces, lazy, flat or in a list.
        """
        self._set_up(parameters)
        if self._whole:
            yield from self._at_once(means, parameters, scale, traced=traced)
            return
        for leaf in self._leaves:
            _tick(leaf)
        held: Flat = {}
        for leaf in self._leaves:
            held.update(self._states[id(leaf)].flat(leaf.state))
        for index, chunk in means:
            bucket = self._pieces[index]
            own = [parameters.pop(piece.entry.path) for piece in bucket]
            states = [held[piece.entry.path] for piece in bucket]
            flat_step = self._flats[index]
            if flat_step is not None and not traced:
                yield index, flat_step(chunk, own, states, scale)
                continue
            gradients = self._parts(index, chunk, traced=traced)
            stepped: Pieces = [None] * len(bucket)
            for step in self._steps[index]:
                step(gradients, own, states, scale, stepped, traced=traced)
            del own, gradients, chunk
            yield index, stepped

    def _parts(self, index: int, chunk: Chunk, *, traced: bool) -> Pieces:
        if isinstance(chunk, list):
            return chunk
        return self._splits[index](chunk, traced=traced)

    def _set_up(self, parameters: Flat) -> None:
        # As MLX does at the next step, where the user has set another state.
        if all(leaf._initialized for leaf in self._leaves):
            return
        own = cut_all(parameters, self._pieces, self._plan)
        self._optimizer.init(nested(self._beside.widened(own)))

    def _at_once(
        self,
        means: Iterable[tuple[int, Chunk]],
        parameters: Flat,
        scale: Array | None,
        *,
        traced: bool,
    ) -> Iterator[tuple[int, Chunk]]:
        own = cut_all(parameters, self._pieces, self._plan)
        parameters.clear()
        mean: Flat = {}
        for index, chunk in means:
            parts = self._parts(index, chunk, traced=traced)
            for piece, gradient in zip(self._pieces[index], parts, strict=True):
                path = piece.entry.path
                dtype = self._beside.wide(own[path].dtype)
                mean[path] = clipped(gradient, dtype, scale)
        held: Flat = {}
        for leaf in self._leaves:
            held.update(self._states[id(leaf)].flat(leaf.state))
        beside = self._beside
        masters = {path: beside.master(own[path], held[path]) for path in own}
        stepped = self._optimizer.apply_gradients(nested(mean), nested(masters))
        flat = dict(tree_flatten(stepped))
        for leaf in self._leaves:  # the optimizer may have made new ones
            held.update(self._states[id(leaf)].flat(leaf.state))
        settled = {p: beside.settle(flat[p], own[p], held[p]) for p in own}
        for index, bucket in enumerate(self._pieces):
            yield index, [settled[piece.entry.path] for piece in bucket]


def _tick(leaf: Any) -> None:
    """What `Optimizer.apply_gradients` does before it looks at any parameter."""
    for name, schedule in leaf._schedulers.items():
        leaf.state[name] = schedule(leaf.step)
    leaf.state["step"] = leaf.step + 1
