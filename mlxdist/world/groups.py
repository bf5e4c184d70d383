"""Groups of `mx.distributed` that live as long as the process."""

from __future__ import annotations

from typing import Literal

import mlx.core as mx

from ..comm import deferred_gather
from ..comm.flight_recorder import Recorder
from ..comm.mpi import MpiTransport
from ..comm.peer_streams import MOST_LANES, PeerStreams
from .finalize import keep_alive

Backend = Literal["mpi", "ring", "jaccl", "nccl"]

SPLITTABLE = ("mpi", "nccl")


def split_group(
    group: mx.distributed.Group, backend: Backend, color: int
) -> mx.distributed.Group:
    """Return a group of the ranks of one color; the same group if it can't be split."""
    if group.size() == 1 or backend not in SPLITTABLE:
        return group
    part = group.split(color)
    keep_alive(part)
    return part


def make_peer_streams(
    host: MpiTransport | None, group: mx.distributed.Group, recorder: Recorder
) -> PeerStreams | None:
    """Return streams for messages over MPI, where ranks compute while they communicate.

    Args:
        host: the transport of the same ranks, if there is one.
        group: theirs, over MPI.
    """
    if host is None or not host.overlaps:
        return None
    if not 1 < host.size <= deferred_gather.MOST_RANKS:
        return None
    lanes = min(MOST_LANES, host.size)
    return PeerStreams([split_group(group, "mpi", 0) for _ in range(lanes)], recorder)
