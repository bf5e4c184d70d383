"""ShardedSampler: the examples that each rank trains on. No communication."""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Iterator, Mapping
from typing import Protocol, TypedDict

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .layout.wording import counted
from .world.world import World

Order = npt.NDArray[np.int64]


class IndexBatch(mx.array):
    """Indices of examples: int64, of shape (batch,). Iterating it yields `int`s.

    It indexes MLX arrays, which refuse NumPy's integers, NumPy arrays, and, one by one,
    lists and dicts: `x[batch]`, `[texts[i] for i in batch]`.
    """

    def __iter__(self) -> Iterator[int]:  # type: ignore[override]
        return iter(self.tolist())  # type: ignore[arg-type]


class SamplerState(TypedDict):
    """Position of a sampler's next batch in its data; JSON can hold it.

    `position` counts the examples of the epoch that were yielded on all ranks, so that
    it means the same in a world of another size.
    """

    epoch: int
    position: int
    seed: int
    n: int
    shuffle: bool


class HasRankAndSize(Protocol):
    """The part of a `World` that the sampler uses."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...


class ShardedSampler:
    """Batches of indices for this rank; an epoch has every example exactly once.

        sampler = ShardedSampler(len(data), world=world, batch_size=32)
        for epoch in range(sampler.epoch, epochs):
            for batch in sampler:
                loss, grads = loss_and_grad(model, x[batch], y[batch])
                optimizer.update(model, grads, weight=len(batch))

    Each pass (`for batch in sampler`) yields the rest of the current epoch, and the
    next pass starts the next epoch. The order of an epoch is a permutation that depends
    only on `seed` and the epoch's number, not on the ranks, the platform or the version
    of NumPy. Global batch k is the k-th run of `batch_size * size` examples in that
    order, for any number of ranks; each rank takes an equal, contiguous part of it.

    A batch is an MLX array of int64. It indexes MLX arrays, NumPy arrays and, as in
    `[texts[i] for i in batch]`, lists.

    Nothing is padded, repeated or dropped, and all ranks get the same number of
    batches, so that their collectives match. The last global batch of an epoch is split
    evenly: the parts differ by at most one example. So call `update` and `world.mean`
    with `weight=len(batch)`; a warning says where `update` has no weight and needs one.
    Where fewer examples than ranks would be left for it, the batch before it takes
    them, a rank one more: MLX fails on empty arrays in convolutions, `cross_entropy`
    and others. Only where fewer examples than ranks are left in all (`n < size`) some
    parts are EMPTY; they have weight 0, and no rank may skip the step.

    A batch counts as consumed once it has been yielded. A checkpoint saved in the body
    of the loop, after training on batch k, resumes with batch k + 1. The epoch ends
    when its last batch is yielded, so that a loop which takes exactly `len(sampler)`
    batches ends it too: from then on, `epoch` and a saved state mean the next epoch.
    The next pass continues one that was left by `break`. If batches are prefetched,
    take `state_dict()` with each batch, and save the one of the last batch trained on.

    All ranks must pass the same arguments; nothing is communicated to verify it. A
    shuffled pass holds the order of the epoch in memory: 8 bytes per example.

    Args:
        n: number of examples.
        world: gives the rank and the number of ranks.
        seed: of the permutations.
        shuffle: False yields the examples in order.
        batch_size: examples per rank and batch.

    Raises:
        ValueError: `n` or `seed` is below 0, `batch_size` is below 1, or the rank is
            outside the world.
        TypeError: one of them is not an integer.
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
                f"world.rank: found {self.rank} in a world of "
                f"{counted(self.size, 'rank')}, wanted 0 to {self.size - 1}"
            )
        self._world = world
        self._next = (0, 0)  # epoch and position of the next batch
        self._passes = 0

    @property
    def epoch(self) -> int:
        """Number of the epoch of the next batch, from 0."""
        return self._next[0]

    @property
    def position(self) -> int:
        """Examples yielded so far in the epoch of the next batch, on all ranks."""
        return self._next[1]

    def __len__(self) -> int:
        """Number of batches left in this epoch, which the next pass yields.

        The same on every rank.
        """
        left = self.n - self.position
        full = (left - self.size) // (self.batch_size * self.size) + 1
        return max(full, int(left > 0))

    def __iter__(self) -> Iterator[IndexBatch]:
        self._passes += 1
        return self._batches(self._passes)

    def _batches(self, this_pass: int) -> Iterator[IndexBatch]:
        self._check_current(this_pass)
        epoch, start = self._next
        order = epoch_order(self.n, self.seed, epoch) if self.shuffle else None
        if self.n == 0:
            self._next = (epoch + 1, 0)
        while start < self.n:
            self._check_current(this_pass)
            stop = start + self.batch_size * self.size
            if self.n - stop < self.size:  # a rank would have none of the rest
                stop = self.n
            # Before the yield, since a loop may end with the epoch's last batch.
            self._next = (epoch, stop) if stop < self.n else (epoch + 1, 0)
            first, last = _share(start, stop, self.rank, self.size)
            self._mark_uneven(is_uneven=(stop - start) % self.size > 0)
            try:
                yield IndexBatch(
                    np.arange(first, last) if order is None else order[first:last]
                )
            finally:  # the batch was used, or the loop was left
                self._mark_uneven(is_uneven=False)
            start = stop

    def _mark_uneven(self, *, is_uneven: bool) -> None:
        if isinstance(self._world, World):
            self._world.has_uneven_shares = is_uneven

    def _check_current(self, this_pass: int) -> None:
        if this_pass != self._passes:
            raise RuntimeError(
                "this pass over the sampler is no longer current: another pass was "
                "started, or a state was loaded. Use one sampler per loop."
            )

    def state_dict(self) -> SamplerState:
        """Return the position of the next batch, the same on every rank."""
        epoch, position = self._next
        return {
            "epoch": epoch,
            "position": position,
            "seed": self.seed,
            "n": self.n,
            "shuffle": self.shuffle,
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue at the position of a `state_dict`. A pass under way ends.

        The number of ranks and the batch size may differ from those of the saved run,
        even in the middle of an epoch: no example is repeated or missed.

        Raises:
            ValueError: `state` is not from `state_dict`, or is for other data or
                another order (`n`, `seed`, `shuffle`).
            TypeError: `state` is no dict, or its position is not an integer.
        """
        if not isinstance(state, Mapping):
            raise TypeError(
                f"the sampler's state is {state!r}: pass the result of state_dict()"
            )
        if set(state) != SamplerState.__required_keys__:
            raise ValueError(
                f"the sampler's state has the keys {sorted(map(str, state))}, wanted "
                f"{sorted(SamplerState.__required_keys__)}: pass the result of "
                "state_dict()."
            )
        for name in ("n", "seed", "shuffle"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"the saved state has {name}={state[name]!r}, this sampler has "
                    f"{name}={getattr(self, name)!r}: a position in one order means "
                    "nothing in another. Make the sampler with "
                    f"{name}={state[name]!r}, or start anew without loading."
                )
        epoch = _integer("epoch of the state", state["epoch"], at_least=0)
        position = _integer("position of the state", state["position"], at_least=0)
        if position > self.n:
            raise ValueError(
                f"position of the state: found {position}, wanted 0 to n={self.n}"
            )
        self._passes += 1
        # Older versions saved the end of an epoch, instead of the next one's start.
        self._next = (epoch + 1, 0) if 0 < position == self.n else (epoch, position)


def epoch_order(n: int, seed: int, epoch: int) -> Order:
    """Return the permutation of `range(n)` for one epoch, as int64.

    It sorts n random 64-bit keys. NumPy guarantees the raw bits of PCG64 across
    versions, but not the output of `Generator.permutation` (NEP 19), with which a run
    resumed under another NumPy could repeat examples. 10 million take about 2 s.
    """
    seeds = np.random.SeedSequence(seed, spawn_key=(epoch,))
    keys = np.random.PCG64(seeds).random_raw(n)
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)


def _share(start: int, stop: int, rank: int, size: int) -> tuple[int, int]:
    """Return the bounds of this rank's part of the global batch [start, stop)."""
    # The first `extra` ranks get one example more than the others.
    count, extra = divmod(stop - start, size)
    first = start + rank * count + min(rank, extra)
    return first, first + count + (rank < extra)


def _integer(name: str, value: object, *, at_least: int) -> int:
    expected = f"wanted an integer of {at_least} or more"
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        short = reprlib.repr(value)  # it may be all the data
        raise TypeError(f"{name}: found {short}, {expected}") from None
    if number < at_least:
        raise ValueError(f"{name}: found {number}, {expected}")
    return number
