"""Several contenders in one launch, sample by sample, so that all meet one noise."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx

import mlxdist

from .progress import Progress


def order_of(names: Sequence[str], number: int) -> list[str]:
    """Who comes after whom in a round: every other one the other way round.

    Every second round another one begins, too.
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
    """Times contenders in turns, on all ranks of one launch.

    Args:
        contenders: what to time, by name; each call is one sample and has to leave
            nothing unevaluated.
        rounds: how many samples of each.
        warmup: rounds before those, which don't count.
        before: called ahead of each sample, outside of its time. A barrier follows.

    Returns:
        Seconds of the slowest rank, by name and round, the same on all ranks.
    """
    names = list(contenders)
    own: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmup, rounds):
        for name in order_of(names, number):
            if before is not None:
                before()
            world.barrier()
            began = time.perf_counter()
            contenders[name]()
            seconds = time.perf_counter() - began
            if number >= 0:
                own[name].append(seconds)
            if progress is not None:
                progress.advance(name)
    every = mx.array([own[name] for name in names])
    slowest: Any = mx.distributed.all_max(every, group=world.group).tolist()
    return dict(zip(names, slowest, strict=True))
