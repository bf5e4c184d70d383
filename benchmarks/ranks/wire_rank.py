"""One rank of `wire`: exchanges gradients over a wire, one way or another.

wire_rank.py KIND TENSORS, where KIND is ours, mpi or ring; takes turns with the others.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map

import mlxdist
from ranks.protocol import serve_requests
from ranks.tensors import make_model

# Each makes one of what it does: it returns arrays to evaluate and to look at.
Work = Callable[[], Any]


class Take(optim.Optimizer):
    """Parameters become the averaged gradients: an exchange, and no arithmetic."""

    elementwise = True

    def init_single(self, parameter: mx.array, state: dict[str, Any]) -> None:
        """There is no state."""

    def apply_single(
        self, gradient: mx.array, parameter: mx.array, state: dict[str, Any]
    ) -> mx.array:
        return gradient


def ours(tensors: str) -> tuple[Any, dict[str, Work]]:
    world = mlxdist.init()
    work: dict[str, Work] = {}
    kinds = {"sharded": ("elements", "host"), "replicated": (False, "native")}
    for kind, (shard, transport) in kinds.items():
        for name, optimizer in (("exchange", Take()), ("step", optim.SGD(1e-6))):
            work[f"{kind} {name}"] = _update(
                make_model(tensors, "float32"),
                mlxdist.DistributedOptimizer(
                    optimizer, shard=shard, transport=transport
                ),
                world.rank,
            )
    return world, work


def _update(model: nn.Module, optimizer: Any, rank: int) -> Work:
    optimizer.init(model)
    gradients = _gradients(model, rank)

    def work() -> Any:
        optimizer.update(model, gradients)
        return model.parameters()

    return work


def upstream(backend: str, tensors: str) -> tuple[Any, dict[str, Work]]:
    group = mx.distributed.init(strict=True, backend=backend)
    model = make_model(tensors, "float32")
    gradients = _gradients(model, group.rank())
    flat = mx.concatenate([g.reshape(-1) for _, g in tree_flatten(gradients)])
    mx.eval(flat)
    optimizer = optim.SGD(1e-6)
    optimizer.init(model.trainable_parameters())

    def step() -> Any:
        optimizer.update(model, nn.average_gradients(gradients, group))
        return model.parameters()

    return group, {
        f"{backend} all_sum": lambda: mx.distributed.all_sum(flat, group=group),
        f"{backend} average_gradients": lambda: nn.average_gradients(gradients, group),
        f"{backend} step": step,
    }


def _gradients(model: nn.Module, rank: int) -> Any:
    gradients = tree_map(lambda p: p * (rank + 1.0), model.trainable_parameters())
    mx.eval(gradients)
    return gradients


def check(what: str, result: Any, tensors: str, size: int) -> None:
    """The mean, or sum, of what ranks have: their number from 1 times the model."""
    if what.endswith("step"):
        return
    path, first = tree_flatten(make_model(tensors, "float32").parameters())[0]
    ranks = size * (size + 1) / 2
    if isinstance(result, mx.array):
        found, wanted = result[: first.size], first.reshape(-1) * ranks
    else:
        found, wanted = dict(tree_flatten(result))[path], first * (ranks / size)
    assert mx.allclose(found, wanted, rtol=1e-5, atol=0), f"{what} is wrong"


def main() -> None:
    kind, tensors = sys.argv[1:]
    world, every = ours(tensors) if kind == "ours" else upstream(kind, tensors)
    if kind == "ours":
        rank, size, barrier = world.rank, world.size, world.barrier
    else:
        rank, size = world.rank(), world.size()

        def barrier() -> None:
            mx.eval(mx.distributed.all_sum(mx.array(1.0), group=world))

    def turn(what: str, rounds: int) -> dict[str, Any]:
        seconds, computing = [], []
        for number in range(-1, rounds):
            barrier()
            began, ran = time.perf_counter(), time.process_time()
            result = every[what]()
            mx.eval(result)
            if number >= 0:
                seconds.append(time.perf_counter() - began)
                computing.append(time.process_time() - ran)
            else:
                check(what, result, tensors, size)
        return {"seconds": seconds, "cpu": computing}

    serve_requests(rank, turn)


if __name__ == "__main__":
    main()
