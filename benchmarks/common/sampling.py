"""Interleaved samples of contenders in one process, so that all meet the same noise."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import mlx.core as mx

import mlxdist

from .progress import Progress

T = TypeVar("T")


def round_order(names: Sequence[T], number: int) -> list[T]:
    """Return the order of contenders in a round.

    Every second round is reversed, and every second round another contender is first.
    """
    first = number // 2 % len(names)
    shifted = [*names[first:], *names[:first]]
    return shifted[::-1] if number % 2 else shifted


def interleave(
    world: mlxdist.World,
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    before: Callable[[], object] | None = None,
    progress: Progress | None = None,
) -> dict[str, list[float]]:
    """Time contenders in interleaved rounds, on all ranks of one job.

    Args:
        contenders: what to time, by name. Each call is one sample, and must leave
            nothing unevaluated.
        rounds: the number of samples of each.
        warmup: rounds before those, which are not counted.
        before: called before each sample, outside of its time. A barrier follows.

    Returns:
        Seconds of the slowest rank, by contender and round, equal on all ranks.
    """
    names = list(contenders)
    local: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmup, rounds):
        for name in round_order(names, number):
            if before is not None:
                before()
            world.barrier()
            began = time.perf_counter()
            contenders[name]()
            seconds = time.perf_counter() - began
            if number >= 0:
                local[name].append(seconds)
            if progress is not None:
                progress.advance(name)
    return {name: slowest(world, local[name]) for name in names}


def slowest(world: mlxdist.World, seconds: Sequence[float]) -> list[float]:
    """Return the maximum over the ranks of each of their samples."""
    result = mx.distributed.all_max(mx.array(seconds), group=world.group)
    return [float(value) for value in result.tolist()]


@contextmanager
def shared_folder(world: mlxdist.World, parent: Path) -> Iterator[Path]:
    """Make a temporary folder on rank 0, for all ranks until the block ends."""
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=parent) as folder:
        yield Path(world.control.all_gather_bytes(folder.encode())[0].decode())
        world.barrier()
