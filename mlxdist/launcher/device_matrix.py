"""The matrix of RDMA devices between hosts, which jaccl needs.

Row i holds, for each host j, the devices of host i that lead to host j. MLX takes a
mesh, in which every pair of hosts has a cable, or a ring, in which neighbours have
equally many (`Config::is_valid_mesh` and `is_valid_ring` in its jaccl.cpp). It compares
no two rows: a matrix that is not symmetric would have one host wait for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

# Of one host, for each host: the names of the devices that lead to it.
Row: TypeAlias = "tuple[tuple[str, ...], ...]"

REMEDY = "write the file with mlx.distributed_config, or correct the entry"


def problems(names: Sequence[str], rows: Sequence[Row], *, ring: bool) -> Iterator[str]:
    """Return what is wrong with a matrix: host, what was found, what was wanted.

    Args:
        names: of the hosts, in the order of rows and columns.
        ring: want a ring, where MLX would otherwise take a mesh as well.
    """
    wrong = list(_lengths(names, rows)) or list(_pairs(names, rows))
    needs_links = len(names) > 1 and not wrong
    if needs_links and not _is_ring(rows) and (ring or not _is_mesh(rows)):
        wrong = list(_gaps(names, rows, ring=ring))
    yield from wrong


def _lengths(names: Sequence[str], rows: Sequence[Row]) -> Iterator[str]:
    size = len(names)
    for name, row in zip(names, rows, strict=True):
        if not row:
            yield f"host {name} has no rdma, wanted a list of {size} items for jaccl"
        elif len(row) != size:
            yield (
                f"host {name} has {len(row)} items in rdma, wanted {size}: one for "
                "each host, null for itself"
            )


def _pairs(names: Sequence[str], rows: Sequence[Row]) -> Iterator[str]:
    for i, name in enumerate(names):
        if rows[i][i]:
            yield (
                f"host {name} has {_listed(rows[i][i])} in rdma for itself (item "
                f"{i + 1}), wanted null"
            )
        for j in range(i):
            there, back = rows[j][i], rows[i][j]
            if len(there) != len(back):
                yield (
                    f"host {names[j]} has {_listed(there)} in rdma for {name}, which "
                    f"has {_listed(back)} for {names[j]}; wanted equally many"
                )


def _gaps(names: Sequence[str], rows: Sequence[Row], *, ring: bool) -> Iterator[str]:
    size = len(names)
    wanted = "a ring, with equally many devices between all neighbours"
    if not ring:
        wanted = f"a device for each pair of hosts, or {wanted}"
    for i in range(size):
        j = (i + 1) % size
        if not rows[i][j] or len(rows[i][j]) != len(rows[0][1 % size]):
            yield (
                f"host {names[i]} has {_listed(rows[i][j])} in rdma for {names[j]}, "
                f"the next host; wanted {wanted}"
            )


def _is_mesh(rows: Sequence[Row]) -> bool:
    size = len(rows)
    return all(rows[i][j] for i in range(size) for j in range(size) if i != j)


def _is_ring(rows: Sequence[Row]) -> bool:
    # Of each host and the next one: what leads back is as much, as _pairs has found.
    counts = {len(row[(i + 1) % len(rows)]) for i, row in enumerate(rows)}
    return len(counts) == 1 and 0 not in counts


def _listed(devices: Sequence[str]) -> str:
    return ", ".join(devices) or "null"
