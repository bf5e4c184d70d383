"""A world of one: mlxdist and the bare optimizer, each plain and inside mx.compile.

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
    contenders = {
        name: make_contender(name, tensors, dtype, gradients)
        for pair in PAIRS
        for name in pair
    }
    source, count = make_model(tensors, dtype), 0

    def compute() -> None:
        nonlocal count
        count += 1
        gradients.clear()
        gradients.append(fresh_gradients(source, count, 0))

    def handle(rounds: int) -> dict[str, Any]:
        return common.interleave(world, contenders, rounds=rounds, before=compute)

    serve_requests(world.rank, handle)


def make_contender(
    name: str, tensors: str, dtype: str, gradients: list[Any]
) -> Callable[[], None]:
    """Return a function that takes a step with the only element of `gradients`."""
    model, optimizer = make_model(tensors, dtype), optim.AdamW(1e-3)
    if name.startswith("ours"):
        optimizer = mlxdist.DistributedOptimizer(optimizer)
        optimizer.init(model)
    else:
        optimizer.init(model.trainable_parameters())
    state = [model.state, optimizer.state]
    mx.eval(state)

    def update(gradients: Any) -> None:
        optimizer.update(model, gradients)

    if name.endswith("compiled"):
        update = partial(mx.compile, inputs=state, outputs=state)(update)

    def step() -> None:
        update(gradients[0])
        mx.eval(model.parameters(), optimizer.state)

    return step


if __name__ == "__main__":
    main()
