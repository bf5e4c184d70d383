"""One rank of the memory bandwidth that `step` measures: STREAM's copy and add.

All ranks run at once. McCalpin, Memory Bandwidth and Machine Balance, 1995: a copy
reads and writes its length; an add reads twice and writes once. Arrays have 256 MiB,
more than any cache.
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
    a, b, result = (np.ones(NBYTES // 4, np.float32) for _ in range(3))

    def handle(steps: int) -> dict[str, Any]:
        rates: dict[str, list[float]] = {"copy": [], "add": []}
        for _ in range(steps):
            for name, moved in (("copy", 2 * NBYTES), ("add", 3 * NBYTES)):
                world.barrier()
                began = time.perf_counter()
                if name == "copy":
                    np.copyto(result, a)
                else:
                    np.add(a, b, out=result)
                rates[name].append(moved / (time.perf_counter() - began))
        return rates

    serve_requests(world.rank, handle)


if __name__ == "__main__":
    main()
