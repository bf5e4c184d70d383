"""How fast memory is when all ranks use it at once: STREAM's copy and add.

McCalpin, Memory Bandwidth and Machine Balance, 1995: a copy reads and writes its
length, an add reads twice and writes once. Arrays of 256 MiB, beyond any cache.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

import mlxdist
from ranks.protocol import serve_requests

NBYTES = 256 * 2**20


def main() -> None:
    world = mlxdist.init()
    one, other, result = (np.ones(NBYTES // 4, np.float32) for _ in range(3))

    def turn(steps: int) -> dict[str, Any]:
        rates: dict[str, list[float]] = {"copy": [], "add": []}
        for _ in range(steps):
            for name, moved in (("copy", 2 * NBYTES), ("add", 3 * NBYTES)):
                world.barrier()
                began = time.perf_counter()
                if name == "copy":
                    np.copyto(result, one)
                else:
                    np.add(one, other, out=result)
                rates[name].append(moved / (time.perf_counter() - began))
        return rates

    serve_requests(world.rank, turn)


if __name__ == "__main__":
    main()
