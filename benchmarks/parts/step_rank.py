"""One rank of a contender of `step` that uses MLX: ours or upstream.

step_rank.py KIND TENSORS DTYPE, under mpirun; takes turns with the other contenders.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from common.turns import answer_turns
from mlx.utils import tree_flatten

import mlxdist
from mlxdist import runtime
from parts.phases import PhaseClock
from parts.tensors import fresh_gradients, make_model

OURS: dict[str, dict[str, Any]] = {
    "sharded": {"shard": True},
    "replicated": {"shard": False},
    "replicated native": {"shard": False, "transport": "native"},
    "replicated host": {"shard": False, "transport": "host"},
}
UPSTREAM = ("upstream", "upstream tuned")


class Contender:
    """A model, and what takes a step of it. `barrier` is the world's own."""

    rank: int
    model: nn.Module
    barrier: Callable[[], object]
    step: Callable[[Any], None]
    clock: PhaseClock | None = None


class Ours(Contender):
    def __init__(self, kind: str, tensors: str, dtype: str):
        world = mlxdist.init()
        self.rank, self.barrier = world.rank, world.barrier
        self.clock = PhaseClock(world.recorder)
        self.model = make_model(tensors, dtype)
        self.optimizer = mlxdist.DistributedOptimizer(optim.AdamW(1e-3), **OURS[kind])
        self.optimizer.init(self.model)

    def step(self, gradients: Any) -> None:
        self.optimizer.update(self.model, gradients)
        mx.eval(self.model.parameters(), self.optimizer.state)


class Upstream(Contender):
    """`nn.average_gradients`, then MLX's optimizer, compiled as its examples do it."""

    def __init__(self, kind: str, tensors: str, dtype: str):
        group = mx.distributed.init(strict=True, backend="mpi")
        if kind != "upstream":
            assert runtime.keep_freed_memory(), "there is no such setting here"
        self.rank = group.rank()
        self.model = make_model(tensors, dtype)
        self.optimizer = optim.AdamW(1e-3)
        self.optimizer.init(self.model.trainable_parameters())
        self.state = state = [self.model.state, self.optimizer.state]
        mx.eval(state)

        @partial(mx.compile, inputs=state, outputs=state)
        def update(gradients: Any) -> None:
            self.optimizer.update(self.model, gradients)

        self.update = update

    def barrier(self) -> None:
        mx.eval(mx.distributed.all_sum(mx.array(1.0)))

    def step(self, gradients: Any) -> None:
        self.update(nn.average_gradients(gradients))
        mx.eval(self.state)


def main() -> None:
    kind, tensors, dtype = sys.argv[1:]
    made = (Upstream if kind in UPSTREAM else Ours)(kind, tensors, dtype)
    done = 0

    def turn(steps: int, warmup: int, trim: bool, phases: bool) -> dict[str, Any]:
        nonlocal done
        seconds = []
        for number in range(-warmup, steps):
            gradients = fresh_gradients(made.model, done, made.rank)
            done += 1
            made.barrier()
            began = time.perf_counter()
            if phases and number >= 0:
                assert made.clock is not None
                with made.clock.running():
                    made.step(gradients)
            else:
                made.step(gradients)
            if number >= 0:
                seconds.append(time.perf_counter() - began)
            del gradients
        if trim:
            mx.clear_cache()
            ctypes.CDLL(None).malloc_trim(0)
        told = {"phases": made.clock.take()} if made.clock and phases else {}
        return {"seconds": seconds, "norm": norm_of(made.model), **told}

    answer_turns(made.rank, turn)


def norm_of(model: nn.Module) -> float:
    """For telling that contenders do the same: of the first tensor alone, for speed."""
    _, first = tree_flatten(model.parameters())[0]
    return float(mx.linalg.norm(first.reshape(-1)[:1000].astype(mx.float32)))


if __name__ == "__main__":
    main()
