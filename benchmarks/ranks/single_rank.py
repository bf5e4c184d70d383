"""A world of one: ours against the bare optimizer, called in the same two ways.

single_rank.py TENSORS DTYPE. All four share this process, and so its allocator.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import common
import mlx.core as mx
import mlx.optimizers as optim

import mlxdist
from ranks.protocol import serve_requests
from ranks.tensors import fresh_gradients, make_model

PAIRS = (("ours", "bare"), ("ours, compiled", "bare, compiled"))


def main() -> None:
    tensors, dtype = sys.argv[1:]
    world = mlxdist.init()
    gradients: list[Any] = []

    def contender(*, ours: bool, compiled: bool) -> Callable[[], None]:
        model, bare = make_model(tensors, dtype), optim.AdamW(1e-3)
        optimizer = mlxdist.DistributedOptimizer(bare) if ours else bare
        optimizer.init(model if ours else model.trainable_parameters())
        state = [model.state, optimizer.state]
        mx.eval(state)

        def update(gradients: Any) -> None:
            optimizer.update(model, gradients)

        if compiled:
            update = partial(mx.compile, inputs=state, outputs=state)(update)

        def step() -> None:
            update(gradients[0])
            mx.eval(model.parameters(), optimizer.state)

        return step

    contenders = {
        ("ours" if ours else "bare") + (", compiled" if compiled else ""): contender(
            ours=ours, compiled=compiled
        )
        for compiled in (False, True)
        for ours in (True, False)
    }
    source, steps = make_model(tensors, dtype), 0

    def compute() -> None:
        nonlocal steps
        steps += 1
        gradients[:] = []
        gradients.append(fresh_gradients(source, steps, 0))

    def turn(rounds: int) -> dict[str, Any]:
        return common.interleave(world, contenders, rounds=rounds, before=compute)

    serve_requests(world.rank, turn)


if __name__ == "__main__":
    main()
