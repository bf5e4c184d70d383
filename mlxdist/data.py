"""ShardedSampler: which examples each rank trains on. Pure numpy, no MPI."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

_STATE_KEYS = frozenset({"epoch", "position", "seed", "n", "shuffle"})


class HasRankAndSize(Protocol):
    """What the sampler needs of a World."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...


class ShardedSampler:
    """Index batches for this rank: every example exactly once per epoch over all ranks.

    ::

        sampler = ShardedSampler(len(data), world=world, batch_size=32)
        for epoch in range(sampler.epoch, epochs):
            for batch in sampler:
                loss, grads = loss_and_grad(model, x[batch], y[batch])
                optimizer.update(model, grads, weight=len(batch))

    One pass (`for batch in sampler`) hands out what is left of an epoch, and the next
    pass begins the next epoch. The order of an epoch is a permutation that depends on
    `seed` and the epoch's number alone: not on the ranks, the platform or the version
    of numpy. Global batch k is the k-th run of `batch_size * size` examples of that
    order, whatever the number of ranks, and each rank gets an equal, contiguous share.

    Nothing is padded, repeated or dropped. The last global batch of an epoch is split
    as evenly as it goes: its shares differ by one example at most and may be EMPTY.
    All ranks get the same number of batches, so that collectives pair up: an empty
    batch is no reason to skip a step. Call `update` with `weight=len(batch)`, which is
    right for every batch; with weight 0 the gradients themselves don't count.

    A batch counts as consumed once it has been handed out. A checkpoint saved in the
    loop's body, after training on batch k, therefore resumes with batch k + 1. Saved
    in the body of an epoch's last batch, it resumes with a pass of no batches, so that
    whatever follows the loop (a validation) is done for that epoch exactly once. A
    pass that is left early (`break`) is continued by the next one. Where batches are
    fetched ahead of training, take `state_dict()` when a batch is fetched and save the
    one that belongs to the last batch trained on.

    All ranks must pass the same arguments; nothing is sent to verify it. A shuffled
    pass holds the epoch's order in memory, 8 bytes per example.

    Raises:
        ValueError: `n` or `seed` below 0, `batch_size` below 1, a rank outside the
            world.
        TypeError: where one of them is not an integer.
    """

    def __init__(
        self,
        n: int,
        *,
        world: HasRankAndSize,
        seed: int = 0,
        shuffle: bool = True,
        batch_size: int = 1,
    ) -> None:
        self.n = _integer("n", n, at_least=0)
        self.seed = _integer("seed", seed, at_least=0)
        self.shuffle = bool(shuffle)
        self.batch_size = _integer("batch_size", batch_size, at_least=1)
        self.size = _integer("world.size", world.size, at_least=1)
        self.rank = _integer("world.rank", world.rank, at_least=0)
        if self.rank >= self.size:
            raise ValueError(
                f"world.rank: found {self.rank} in a world of {self.size} ranks, "
                f"wanted 0 to {self.size - 1}"
            )
        self._epoch = 0
        self._position = 0
        self._passes = 0

    @property
    def epoch(self) -> int:
        """Number of the epoch under way, or of the next to begin; from 0."""
        return self._epoch

    @property
    def position(self) -> int:
        """Examples of this epoch handed out so far, over all ranks."""
        return self._position

    def __len__(self) -> int:
        """How many batches are left in this epoch: those of a whole one at its start.

        The same on every rank, and just what the next pass hands out.
        """
        return -(-(self.n - self._position) // (self.batch_size * self.size))

    def __iter__(self) -> Iterator[Indices]:
        self._passes += 1
        return self._batches(self._passes)

    def _batches(self, this_pass: int) -> Iterator[Indices]:
        self._check_current(this_pass)
        order = epoch_order(self.n, self.seed, self._epoch) if self.shuffle else None
        while self._position < self.n:
            start = self._position
            stop = min(start + self.batch_size * self.size, self.n)
            self._position = stop  # before the hand-out: see the class's docstring
            first, last = _share(start, stop, self.rank, self.size)
            if order is None:
                yield np.arange(first, last, dtype=np.int64)
            else:
                yield order[first:last].copy()  # a view would keep all of it alive
            self._check_current(this_pass)
        self._epoch, self._position = self._epoch + 1, 0

    def _check_current(self, this_pass: int) -> None:
        if this_pass != self._passes:
            raise RuntimeError(
                "This pass over the sampler is no longer current: another one was "
                "begun, or a state was loaded. Use one sampler for each loop."
            )

    def state_dict(self) -> dict[str, Any]:
        """The place in the data, the same on every rank; JSON can hold it.

        `position` counts examples over all ranks, so that it means the same to a
        world of another size.
        """
        return {
            "epoch": self._epoch,
            "position": self._position,
            "seed": self.seed,
            "n": self.n,
            "shuffle": self.shuffle,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to the place that `state_dict` named, and ends a pass under way.

        The number of ranks and the batch size may differ from those it was saved with,
        also in the middle of an epoch: no example is seen twice or missed.

        Raises:
            ValueError: the state belongs to other data or another order (`n`, `seed`,
                `shuffle`), or is no such state.
        """
        if set(state) != _STATE_KEYS:
            raise ValueError(
                f"The sampler's state has the keys {sorted(state)}, wanted "
                f"{sorted(_STATE_KEYS)}: pass what state_dict() returned."
            )
        for name in ("n", "seed", "shuffle"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"The saved state has {name}={state[name]!r}, this sampler has "
                    f"{name}={getattr(self, name)!r}: a position in one order means "
                    "nothing in another. Make the sampler with "
                    f"{name}={state[name]!r}, or begin anew without loading."
                )
        epoch = _integer("epoch of the state", state["epoch"], at_least=0)
        position = _integer("position of the state", state["position"], at_least=0)
        if position > self.n:
            raise ValueError(
                f"position of the state: found {position}, wanted 0 to n={self.n}"
            )
        self._passes += 1
        self._epoch, self._position = epoch, position


def epoch_order(n: int, seed: int, epoch: int) -> Indices:
    """The permutation of `range(n)` for one epoch.

    Sorts n random 64-bit keys, instead of numpy's own `permutation`, because numpy
    promises the raw bits of PCG64 for ever but not what its generators make of them
    (NEP 19): a run resumed under another numpy would otherwise see examples twice.
    10 million examples take about 2 s.
    """
    seeds = np.random.SeedSequence(seed, spawn_key=(epoch,))
    keys = np.random.PCG64(seeds).random_raw(n)
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)


def _share(start: int, stop: int, rank: int, size: int) -> tuple[int, int]:
    # The first `extra` ranks get one example more than the others.
    each, extra = divmod(stop - start, size)
    first = start + rank * each + min(rank, extra)
    return first, first + each + (rank < extra)


def _integer(name: str, value: object, *, at_least: int) -> int:
    wanted = f"wanted an integer of {at_least} or more"
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}: found {value!r}, {wanted}") from None
    if number < at_least:
        raise ValueError(f"{name}: found {number}, {wanted}")
    return number
