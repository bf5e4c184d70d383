"""The global batches of a run: their order, and each rank's rows of them.

mlx-lm shuffles with NumPy's global random numbers. Here every rank draws rank 0's, so
that the order depends on the seed and the iteration, and not on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from typing import Any

import mlx.core as mx
import numpy as np

from ...arrays.types import Array
from ...world.world import World
from .upstream import TrainingArgs

Batch = tuple[Array, ...]
Iterate = Callable[..., Iterator[Batch]]
State = dict[str, Any]  # of NumPy's random numbers, as `np.random.get_state` has it


class Batches:
    """Iterates over data as mlx-lm does, and knows how to continue.

    Args:
        iterate: mlx-lm's `iterate_batches`, or the user's.
        world: rank 0's random numbers of NumPy are taken. Called by all ranks.
    """

    def __init__(self, iterate: Iterate, world: World):
        self._iterate, self._world = iterate, world
        self._state = _broadcast(world, np.random.get_state(legacy=False))
        self._start, self._position = self._state, 0
        self._resumed = 0

    def training(self, dataset: Sized, args: TrainingArgs) -> Iterator[Batch]:
        """Yield this rank's rows of each global batch, epoch after epoch."""
        arguments = {
            "dataset": dataset,
            "batch_size": args.batch_size,
            "max_seq_length": args.max_seq_length,
        }
        while True:
            yield from self._epoch(arguments)

    def _epoch(self, arguments: Mapping[str, object]) -> Iterator[Batch]:
        skipped, later = self._resumed, self._state
        if skipped:
            self._state = self._start
        self._start, self._resumed, position = self._state, 0, 0
        for position, batch in enumerate(self._drawn(loop=False, **arguments), 1):
            if position == skipped:
                self._state = later
            if position > skipped:
                self._position = position
                yield rows_of_rank(batch, self._world)
        if not position:
            raise ValueError("iterate_batches yields no batch")

    def evaluation(self, **arguments: object) -> Iterator[Batch]:
        """As mlx-lm's `iterate_batches`: this rank's rows of each global batch."""
        for batch in self._drawn(**{**arguments, "comm_group": None}):
            yield rows_of_rank(batch, self._world)

    def _drawn(self, **arguments: object) -> Iterator[Batch]:
        """Yield global batches, in the order of the run's own random numbers."""
        batches = iter(self._iterate(**{"comm_group": None, **arguments}))
        while True:
            others = np.random.get_state(legacy=False)
            np.random.set_state(self._state)
            try:
                batch = next(batches, None)
            finally:
                self._state = np.random.get_state(legacy=False)
                np.random.set_state(others)
            if batch is None:
                return
            yield batch

    def leave_random_state(self) -> None:
        """Let NumPy's global random numbers go on where the run's are."""
        np.random.set_state(self._state)

    def state_dict(self) -> State:
        """Return the position of the next training batch, the same on all ranks."""
        states = {"start": self._start, "now": self._state}
        return {"position": self._position, **states}

    def load_state_dict(self, state: State) -> None:
        """Continue at the position of a `state_dict`, with any number of ranks.

        The batches of the epoch up to there are made again, and dropped.
        """
        self._start, self._state = state["start"], state["now"]
        self._resumed = self._position = state["position"]


def rows_of_rank(batch: Batch, world: World) -> Batch:
    """Return rows `rank`, `rank + ranks` and so on of each array, as mlx-lm deals them.

    All ranks keep the length of the longest row: their shapes are the same.

    Raises:
        ValueError: the ranks can't have equal shares.
    """
    if world.size == 1:
        return tuple(batch)
    for array in batch:
        if len(array) % world.size:
            raise ValueError(
                f"a batch has {len(array)} rows, which {world.size} ranks can't share "
                "equally: let iterate_batches yield a multiple of the ranks"
            )
    return tuple(array[world.rank :: world.size] for array in batch)


def _broadcast(world: World, state: State) -> State:
    """Return rank 0's random numbers of NumPy."""
    inner = state["state"]
    numbers = np.append(inner["key"], inner["pos"]).astype(np.uint32)
    numbers = np.array(world.broadcast({"": mx.array(numbers)})[""])
    inner = {"key": numbers[:-1], "pos": int(numbers[-1])}
    return {"bit_generator": "MT19937", "state": inner, "has_gauss": 0, "gauss": 0.0}
