"""A description of an optimizer's plan, in words and figures."""

from __future__ import annotations

from dataclasses import dataclass

from ..comm.collectives import Traffic
from ..layout.sharding import Plan
from ..layout.wording import counted
from .pipeline import Pipelines
from .setup import Initialized


@dataclass(frozen=True)
class Description:
    """Who owns what, and how much. `str()` of it is a page to read.

    Attributes:
        plan: buckets and owners.
        transport: "native" or "host".
        traffic: what this rank sends in a step.
        compiled: whether updates of elementwise optimizers run as compiled kernels.
        state_bytes_by_rank: bytes of per-parameter state on each rank.
        overlaps_forward: whether new parameters arrive behind the next forward pass.
        begun_anew: parameters that the last `init` gave new state, though others kept
            theirs, and why.
    """

    plan: Plan
    optimizer: str
    transport: str
    rank: int
    traffic: Traffic
    compiled: bool
    state_bytes_by_rank: tuple[int, ...]
    begun_anew: tuple[str, ...] = ()
    overlaps_forward: bool = False

    @property
    def state_bytes(self) -> int:
        """Bytes of per-parameter optimizer state on this rank."""
        return self.state_bytes_by_rank[self.rank]

    @property
    def state_bytes_unsharded(self) -> int:
        """Bytes that each rank would hold without sharding."""
        if self.plan.sharded:
            return sum(self.state_bytes_by_rank)
        return self.state_bytes_by_rank[0]

    def __str__(self) -> str:
        plan = self.plan
        elements = sum(entry.size for entry in plan.entries)
        update = "compiled" if self.compiled else "not compiled"
        lines = [
            f"{self.optimizer}, {plan.strategy}, {counted(plan.ranks, 'rank')}, "
            f"{self.transport}, update {update}",
            f"{counted(elements, 'parameter')} in "
            f"{counted(len(plan.entries), 'tensor')}, "
            f"{counted(len(plan.buckets), 'bucket')}",
            f"rank {self.rank} sends {megabytes(self.traffic.bytes_sent)} MB a step in "
            f"{counted(self.traffic.collectives, 'collective')}",
            f"state unsharded: {megabytes(self.state_bytes_unsharded)} MB a rank",
        ]
        for rank, nbytes in enumerate(self.state_bytes_by_rank):
            shard = plan.shard(rank)
            owned = sum(stop - start for start, stop in shard.values())
            lines.append(
                f"rank {rank}: {megabytes(nbytes)} MB of state, "
                f"{counted(owned, 'element')} of {counted(len(shard), 'tensor')}"
            )
        if self.overlaps_forward:
            lines.append("new parameters arrive behind the next forward pass")
        if self.begun_anew:
            lines.append(f"new state since the last init: {', '.join(self.begun_anew)}")
        return "\n".join(lines)


def describe(
    made: Initialized,
    pipelines: Pipelines,
    *,
    optimizer: str,
    accumulates: bool,
    pairwise: bool,
) -> Description:
    """Describe a plan on its transport.

    Args:
        made: by `init`.
        optimizer: the wrapped optimizer's name.
        accumulates: whether sums of micro-batches are exchanged, which are float32.
        pairwise: whether ranks are added in pairs.
    """
    wire = pipelines.eager.wire
    return Description(
        plan=pipelines.plan,
        optimizer=optimizer,
        transport=wire.comm.name,
        rank=wire.comm.rank,
        traffic=wire.expected("float32" if accumulates else None, pairwise=pairwise),
        compiled=pipelines.eager.local.is_compiled,
        state_bytes_by_rank=made.state_bytes_by_rank,
        begun_anew=made.begun_anew,
        overlaps_forward=wire.is_deferred,
    )


def megabytes(nbytes: int) -> str:
    """2500000 -> "2.5": a million bytes each."""
    return f"{nbytes / 1e6:.3g}" if nbytes < 1e8 else f"{nbytes / 1e6:.0f}"
