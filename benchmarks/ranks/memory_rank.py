"""One rank of `memory`: the memory of its process before, during and after steps.

memory_rank.py CONTENDER TENSORS, under mpirun. Linux only, because it reads /proc.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ranks.contenders import Contender, make_contender
from ranks.protocol import serve_requests
from ranks.tensors import fresh_gradients


def main() -> None:
    name, tensors = sys.argv[1:]
    small = make_contender(name, "10x10", "float32")
    step(small, 0)
    del small
    bare = process_memory()
    contender = make_contender(name, tensors, "float32")

    def handle(steps: int) -> dict[str, Any]:
        step(contender, 0)  # allocates what lives as long as the optimizer
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        mx.reset_peak_memory()
        for number in range(steps):
            step(contender, number)
        peak = process_memory()
        return {
            "bare": bare["private"],
            "peak": peak["peak"] - peak["shared"],
            "steady": peak["private"],
            "proportional": peak["proportional"],
            "mpi_shared": peak["shared"],
            "mlx_peak": mx.get_peak_memory(),
            "mlx_active": mx.get_active_memory(),
            "parameters": nbytes_of(contender.model.parameters()),
            "state": nbytes_of(contender.optimizer.state),
        }

    serve_requests(contender.rank, handle)


def step(contender: Contender, number: int) -> None:
    gradients = fresh_gradients(contender.model, number, contender.rank)
    contender.barrier()
    contender.step(gradients)


def nbytes_of(tree: Any) -> int:
    return sum(leaf.nbytes for _, leaf in tree_flatten(tree))


def process_memory() -> dict[str, int]:
    """Return the bytes of this process, and its peak since that was last reset.

    "shared" is memory that MPI shares between processes; "private" is what is resident
    without it; "proportional" divides shared memory by the number of its processes.
    """
    status = Path("/proc/self/status").read_text()
    rollup = Path("/proc/self/smaps_rollup").read_text()
    shared = _kilobytes("RssShmem", status)
    return {
        "private": _kilobytes("VmRSS", status) - shared,
        "shared": shared,
        "peak": _kilobytes("VmHWM", status),
        "proportional": _kilobytes("Pss", rollup),
    }


def _kilobytes(name: str, text: str) -> int:
    field = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    assert field, f"/proc has no {name}"
    return 1024 * int(field[1])


if __name__ == "__main__":
    main()
