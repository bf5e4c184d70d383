"""One leaf optimizer's step on one large piece, part by part.

A step of a whole piece has its new state and values, and what the optimizer computes on
the way, next to the old ones. Here only those of a part exist, and the new state is
written over the old one. For elementwise optimizers, which give the same bits for a
part as for the whole.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import mlx.core as mx

from ..arrays import device
from ..arrays.blockwise import numbers_of_blocks
from ..arrays.concat import Chunk
from ..arrays.in_place import InPlace
from ..arrays.numpy_view import address, uninitialized
from ..arrays.trees import cut
from ..arrays.types import Array, Dtype, Named, Pieces
from ..comm.gather import Slot
from ..layout.entries import Entry, split_counts
from ..layout.paths import KeyPath
from ..layout.sharding import Piece, Strategy
from ..layout.state_blocks import BLOCK
from .fused_step import can_be_fused
from .inner_optimizer import Leaf
from .piece_step import PieceStep
from .quantized_state import CODES, SCALES
from .quantized_step import (
    Key,
    Moments,
    State,
    container_of,
    leaf_at,
    leaf_keys,
    put_leaf,
)
from .weight_copies import WeightCopies

# Of a rank's elements, those of a piece from which on it is stepped in parts.
SHARE = 1 / 16


class _Part(NamedTuple):
    """The step of elements [start, ...), lazy."""

    start: int
    stepped: Array
    state: State


# Gradient, under the key "mean", flat; where the parameter is; state; scale.
_Inputs = tuple[Named, Slot, State, Array | None]


class PartStep:
    """A leaf optimizer's step on one piece, one part at a time.

    Attributes:
        is_incomplete: whether an error has left a part of the state stepped. The caller
            sets it to False before the next step.
    """

    def __init__(
        self,
        leaf: Leaf,
        piece: Piece,
        strategy: Strategy,
        copies: WeightCopies,
        moments: Moments = (),
        *,
        compiled: bool,
    ):
        self._leaf, self._piece, self._strategy = leaf, piece, strategy
        self._moments = moments
        size = self._size = piece.stop - piece.start
        whole = Piece(Entry(KeyPath(), (size,), piece.entry.dtype), 0, size, 0)
        self._step = PieceStep(
            leaf, "replicated", [whole], copies, moments, compiled=compiled
        )
        self._spans = split_counts(size, device.part_size())
        self.is_incomplete = False

    @staticmethod
    def pays(piece: Piece, total: int) -> bool:
        """Whether a piece is so large that its parts need much less memory.

        A step in parts copies what it has computed, and takes half as long again. A
        whole one needs the memory of three more arrays of the piece.

        Args:
            total: elements of all pieces of this rank.
        """
        size = piece.stop - piece.start
        parts = 8 if device.on_cpu() else 2  # of less, a whole step needs few MiB
        return size > parts * device.part_size() and size > SHARE * total

    def applies_to(self, state: State) -> bool:
        """Whether the step can be taken in parts with this state."""
        return can_be_fused(self._leaf) and all(
            leaf_at(state, key).size == self._size // _elements_of(key)
            for key in leaf_keys(state)
        )

    def __call__(
        self,
        mean: Chunk,
        parameters: Pieces,
        state: State,
        scale: Array | None,
        slot: Slot | None,
    ) -> Array | None:
        """Return the new values of the piece, and update `state`.

        Args:
            mean: the piece's mean gradient. New values take its memory if they can.
            parameters: the whole one; dropped.
            slot: where it is, if it may be overwritten. Then it stays where it is in
                memory: one that moves at each step leaves gaps behind.

        Returns:
            None, with nothing changed, where the step makes other state than there is.
        """
        (gradient,) = mean.pieces()
        local = cut(parameters[0], self._piece, self._strategy)
        gradients, shape = {"mean": gradient.reshape(-1)}, local.shape
        mx.eval(gradients, local, state)  # raises the errors of a user's computation
        is_copy = address(mean.arrays[0]) is None  # of a transposed array
        inputs = gradients, slot or _slot_of(local), state, scale
        del gradient
        waiting = deque([self._start(0, *inputs)])
        if _layout(waiting[0].state) != _layout(state):
            return None
        parameters.clear()
        mean.drop()
        is_free = mean.is_reusable or is_copy
        new: Slot = slot or (gradients, "mean")
        if slot is None and (gradients["mean"].dtype != local.dtype or not is_free):
            new = _slot_of(uninitialized(self._size, local.dtype))
        del local
        outputs = {
            key: InPlace(container_of(state, key), key[-1]) for key in leaf_keys(state)
        }
        self._write_all(waiting, inputs, InPlace(*new), outputs)
        container, name = new
        return container[name].reshape(shape)

    def _write_all(
        self,
        waiting: deque[_Part],
        inputs: _Inputs,
        values: InPlace,
        outputs: dict[Key, InPlace],
    ) -> None:
        """Step and write the parts; the first one while no view of the rest is left."""
        self.is_incomplete = True
        self._write(waiting.popleft(), values, outputs)
        for index in range(1, len(self._spans)):
            waiting.append(self._start(index, *inputs))
            if len(waiting) > device.parts_ahead():
                self._write(waiting.popleft(), values, outputs)
        while waiting:
            self._write(waiting.popleft(), values, outputs)
        self.is_incomplete = False

    def _start(
        self,
        index: int,
        gradients: Named,
        parameter: Slot,
        state: State,
        scale: Array | None,
    ) -> _Part:
        """Queue a part's step."""
        start, stop = self._spans[index]
        container, name = parameter
        new: State = {}
        for key in leaf_keys(state):
            each = _elements_of(key)
            part = leaf_at(state, key).reshape(-1)[start // each : stop // each]
            put_leaf(new, key, part.reshape(-1, BLOCK) if key[-1] == CODES else part)
        blocks = None
        if self._moments:
            first = self._piece.start
            blocks = numbers_of_blocks([(first + start, first + stop)])
        (stepped,) = self._step(
            [gradients["mean"][start:stop]],
            [container[name].reshape(-1)[start:stop]],
            [new],
            scale,
            [blocks],
        )
        mx.async_eval(stepped, new)
        return _Part(start, stepped, new)

    def _write(self, part: _Part, values: InPlace, outputs: dict[Key, InPlace]) -> None:
        mx.eval(part.stepped, part.state)
        values.write(part.start, part.stepped)
        for key in leaf_keys(part.state):
            start = part.start // _elements_of(key)
            outputs[key].write(start, leaf_at(part.state, key).reshape(-1))


def _slot_of(array: Array) -> Slot:
    return {"array": array}, "array"


def _elements_of(key: Key) -> int:
    """Return how many elements have a number of a state's array together."""
    return BLOCK if key[-1] == SCALES else 1


def _layout(state: State) -> dict[Key, Dtype]:
    return {key: leaf_at(state, key).dtype for key in leaf_keys(state)}
