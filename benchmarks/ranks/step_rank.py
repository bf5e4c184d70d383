"""One rank of a contender of `step` that uses MLX: ours or upstream.

step_rank.py KIND TENSORS DTYPE, under mpirun; takes turns with the other contenders.
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
    kind, tensors, dtype = sys.argv[1:]
    made = make_contender(kind, tensors, dtype)
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

    serve_requests(made.rank, turn)


def norm_of(model: nn.Module) -> float:
    """For telling that contenders do the same: of the first tensor alone, for speed."""
    _, first = tree_flatten(model.parameters())[0]
    return float(mx.linalg.norm(first.reshape(-1)[:1000].astype(mx.float32)))


if __name__ == "__main__":
    main()
