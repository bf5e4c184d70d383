"""CPU cores of this machine, and how its ranks share them.

`rank_main` loads this file before the package exists: standard library only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def thread_share(
    environment: Mapping[str, str], cores: int, ranks: int
) -> dict[str, str]:
    """Return the missing thread variables, so that `ranks` share `cores`.

    A variable that the user has set stays, and OMP_NUM_THREADS sets the others too.
    """
    share = environment.get("OMP_NUM_THREADS", str(max(1, cores // ranks)))
    return {name: share for name in THREAD_VARIABLES if name not in environment}


def oversubscription_warning(ranks: int, cores: int, host: str = "") -> str:
    """Return the warning for a machine with more ranks than cores."""
    return (
        f"mlxdist run: {ranks} ranks share {cores} core{'s' * (cores > 1)}"
        f"{host and f' on {host}'}: they run in turns, so timings mean little."
    )
