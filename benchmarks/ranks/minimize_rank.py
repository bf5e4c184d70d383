"""One rank of `minimize`: training steps by `minimize` and by `update`.

minimize_rank.py, under mpirun. An argument, the kind of a job on virtual hosts, is not
read.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

import mlxdist
from ranks.overlap_rank import CONTEXT, make_model
from ranks.protocol import serve_requests
from ranks.transformer import loss_of

CONTENDERS: dict[str, dict[str, Any]] = {
    "sharded": {"shard": True},
    "replicated": {"shard": False},
    "unchecked": {"shard": True, "check_finite": False},
}
CALLS = ("minimize", "update")
STEPS = 3  # of a sample, in a row: parameters may arrive behind the next forward pass
WARMUP = 1  # steps before each sample


class Steps:
    """Training steps of one model by one call."""

    def __init__(self, contender: str, call: str):
        self.model = make_model()
        options = CONTENDERS[contender]
        self._optimizer = mlxdist.DistributedOptimizer(optim.AdamW(1e-4), **options)
        self._optimizer.init(self.model)
        self._value_and_grad = nn.value_and_grad(self.model, loss_of)
        self._step = {"minimize": self._minimize, "update": self._update}[call]
        self.finish()

    def __call__(self, x: mx.array) -> None:
        mx.eval(self._step(x), self._optimizer.state)

    def finish(self) -> None:
        """Wait for the parameters, which may arrive later than the state."""
        mx.eval(self.model.parameters(), self._optimizer.state)

    def _minimize(self, x: mx.array) -> Any:
        return self._optimizer.minimize(loss_of, self.model, x)

    def _update(self, x: mx.array) -> Any:
        loss, gradients = self._value_and_grad(self.model, x)
        self._optimizer.update(self.model, gradients)
        return loss


def main() -> None:
    world = mlxdist.init()
    random = np.random.default_rng(world.rank)
    made: dict[str, Steps] = {}

    def handle(name: str, rows: int) -> dict[str, float]:
        """Take some steps, and return the seconds of one."""
        if name not in made:
            made[name] = Steps(*name.split())
        step, batch = made[name], partial(random.integers, 0, 255, (rows, CONTEXT + 1))
        for _ in range(WARMUP):
            step(mx.array(batch()))
        step.finish()
        batches = [mx.array(batch()) for _ in range(STEPS)]
        mx.eval(batches)
        world.barrier()
        began, processor = time.perf_counter(), time.process_time()
        for x in batches:
            step(x)
        step.finish()
        return {
            "wall": (time.perf_counter() - began) / STEPS,
            "processor": (time.process_time() - processor) / STEPS,
        }

    serve_requests(world.rank, handle)


if __name__ == "__main__":
    main()
