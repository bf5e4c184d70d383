"""One rank of `memory`: the memory of its process before, during and after steps.

memory_rank.py MODE TENSORS DTYPE, under mpirun. Linux only, because it reads /proc.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten

import mlxdist
from ranks.memory_modes import MODES, Mode
from ranks.protocol import serve_requests
from ranks.tensors import make_model


class Training:
    """A model of tensors without layers, and its steps with AdamW."""

    def __init__(self, mode: Mode, tensors: str, dtype: str):
        self.model = make_model(tensors, dtype)
        self.optimizer = optim.AdamW(1e-3)
        self._value_and_grad = nn.value_and_grad(self.model, loss_of)
        self._mode = mode
        if mode.options is None:
            self.optimizer.init(self.model.trainable_parameters())
            self._update = self._compiled_update()
        else:
            options = mode.optimizer_options(dtype)
            self.optimizer = mlxdist.DistributedOptimizer(self.optimizer, **options)
            self.optimizer.init(self.model)
            self._update = partial(self.optimizer.update, self.model)
        mx.clear_cache()

    def step(self, number: int) -> None:
        scale = mx.array(1.0 + 0.25 * (number % 5))
        if self._mode.minimize:
            self.optimizer.minimize(loss_of, self.model, scale)
        else:
            loss, gradients = self._value_and_grad(self.model, scale)
            mx.eval(loss, gradients)  # a lazy loss would keep the old parameters
            self._update(gradients)
        mx.eval(self.model.state, self.optimizer.state)

    def state_bytes(self) -> int:
        """Return the bytes of the optimizer's state, without master weights."""
        masters = ("master", "correction")
        flat = tree_flatten(self.optimizer.state)
        return sum(x.nbytes for name, x in flat if name.split(".")[-1] not in masters)

    def _compiled_update(self) -> Callable[[Any], None]:
        """Upstream: averages, and updates in `mx.compile`, as in MLX's examples."""
        state = [self.model.state, self.optimizer.state]

        @partial(mx.compile, inputs=state, outputs=state)
        def update(gradients: Any) -> None:
            self.optimizer.update(self.model, gradients)

        return lambda gradients: update(nn.average_gradients(gradients))


def loss_of(model: nn.Module, scale: mx.array) -> mx.array:
    """Return a loss whose gradients are new arrays, and which has no activations."""
    total = mx.array(0.0)
    for _, parameter in tree_flatten(model.trainable_parameters()):
        row = mx.broadcast_to(scale.astype(parameter.dtype), parameter.shape[-1:])
        total = total + (parameter @ row).sum().astype(mx.float32)
    return total


def main() -> None:
    name, tensors, dtype = sys.argv[1:]
    mode = MODES[name]
    rank = join(mode)
    small = Training(mode, "10x10", dtype)
    small.step(0)
    del small
    bare = process_memory()
    training = Training(mode, tensors, dtype)

    def handle(steps: int) -> dict[str, Any]:
        training.step(0)  # allocates what lives as long as the optimizer
        samples = []
        for number in range(steps):
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
            mx.reset_peak_memory()
            training.step(number)
            memory = process_memory()
            samples.append({**memory, "mlx_peak": mx.get_peak_memory()})
        return {
            "bare": bare["private"],
            "samples": samples,
            "mlx_active": mx.get_active_memory(),
            "parameters": nbytes_of(training.model.parameters()),
            "state": training.state_bytes(),
            "elements": sum(
                leaf.size for _, leaf in tree_flatten(training.model.parameters())
            ),
        }

    serve_requests(rank, handle)


def join(mode: Mode) -> int:
    """Join the other ranks, as mlxdist or as MLX alone does, and return the rank."""
    if mode.options is not None:
        return mlxdist.init().rank
    # Without strict=True, MLX that finds no MPI makes each rank a world of one.
    multiple = int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
    rank: int = mx.distributed.init(strict=multiple, backend="mpi").rank()
    return rank


def nbytes_of(tree: Any) -> int:
    return sum(leaf.nbytes for _, leaf in tree_flatten(tree))


def process_memory() -> dict[str, int]:
    """Return the bytes of this process, and its peak since that was last reset.

    "shared" is memory that MPI shares between processes; "private" is what is resident
    without it, and "peak" the most that was; "proportional" divides shared memory by
    the number of its processes.
    """
    status = Path("/proc/self/status").read_text()
    rollup = Path("/proc/self/smaps_rollup").read_text()
    shared = _kilobytes("RssShmem", status)
    return {
        "private": _kilobytes("VmRSS", status) - shared,
        "shared": shared,
        "peak": _kilobytes("VmHWM", status) - shared,
        "proportional": _kilobytes("Pss", rollup),
    }


def _kilobytes(name: str, text: str) -> int:
    field = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    assert field, f"/proc has no {name}"
    return 1024 * int(field[1])


if __name__ == "__main__":
    main()
