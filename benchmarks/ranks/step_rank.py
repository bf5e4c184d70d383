"""One rank of a contender of `step` that uses MLX: mlxdist or upstream.

step_rank.py CONTENDER TENSORS DTYPE, under mpirun.
"""

from __future__ import annotations

import ctypes
import sys
import time
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ranks.contenders import make_contender
from ranks.protocol import serve_requests
from ranks.tensors import fresh_gradients


def main() -> None:
    name, tensors, dtype = sys.argv[1:]
    contender = make_contender(name, tensors, dtype)
    count = 0

    def handle(steps: int, warmup: int, trim: bool, phases: bool) -> dict[str, Any]:
        nonlocal count
        seconds = []
        for number in range(-warmup, steps):
            gradients = fresh_gradients(contender.model, count, contender.rank)
            count += 1
            contender.barrier()
            began = time.perf_counter()
            if phases and number >= 0:
                assert contender.clock is not None
                with contender.clock.running():
                    contender.step(gradients)
            else:
                contender.step(gradients)
            if number >= 0:
                seconds.append(time.perf_counter() - began)
            del gradients
        if trim:
            mx.clear_cache()
            ctypes.CDLL(None).malloc_trim(0)
        result = {"seconds": seconds, "norm": norm_of(contender.model)}
        if contender.clock and phases:
            result["phases"] = contender.clock.take()
        return result

    serve_requests(contender.rank, handle)


def norm_of(model: nn.Module) -> float:
    """Return a norm to compare contenders by: of some elements only, for speed."""
    _, first = tree_flatten(model.parameters())[0]
    return float(mx.linalg.norm(first.reshape(-1)[:1000].astype(mx.float32)))


if __name__ == "__main__":
    main()
