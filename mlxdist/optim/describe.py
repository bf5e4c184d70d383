"""What an optimizer's plan amounts to, in words and figures."""

from __future__ import annotations

from dataclasses import dataclass

from ..comm.collectives import Traffic
from ..comm.wire import Wire
from ..layout.sharding import Plan


@dataclass(frozen=True)
class Description:
    """Who owns what, and how much. `str()` of it is a page to read.

    Attributes:
        plan: buckets and owners.
        traffic: what this rank sends in a step.
        state_bytes_by_rank: bytes of per-parameter state that each rank holds.
    """

    plan: Plan
    optimizer: str
    transport: str
    rank: int
    traffic: Traffic
    state_bytes_by_rank: tuple[int, ...]

    @property
    def state_bytes(self) -> int:
        """Bytes of per-parameter optimizer state on this rank."""
        return self.state_bytes_by_rank[self.rank]

    @property
    def state_bytes_unsharded(self) -> int:
        """What each rank would hold without sharding."""
        if self.plan.sharded:
            return sum(self.state_bytes_by_rank)
        return self.state_bytes_by_rank[0]

    def __str__(self) -> str:
        plan = self.plan
        elements = sum(entry.size for entry in plan.entries)
        lines = [
            f"{self.optimizer}, {plan.strategy}, {plan.ranks} ranks, {self.transport}",
            f"{elements:,} parameters in {len(plan.entries)} tensors, "
            f"{len(plan.buckets)} buckets",
            f"rank {self.rank} sends {megabytes(self.traffic.bytes_sent)} MB a step in "
            f"{self.traffic.collectives} collectives",
            f"state unsharded: {megabytes(self.state_bytes_unsharded)} MB a rank",
        ]
        for rank, held in enumerate(self.state_bytes_by_rank):
            shard = plan.shard(rank)
            owned = sum(stop - start for start, stop in shard.values())
            lines.append(
                f"rank {rank}: {megabytes(held)} MB of state, {owned:,} elements of "
                f"{len(shard)} tensors"
            )
        return "\n".join(lines)


def describe(
    wire: Wire, optimizer: str, state_bytes_by_rank: tuple[int, ...]
) -> Description:
    """What a plan on a transport amounts to, for an optimizer's name and state."""
    return Description(
        wire.plan,
        optimizer=optimizer,
        transport=wire.comm.name,
        rank=wire.comm.rank,
        traffic=wire.expected(),
        state_bytes_by_rank=state_bytes_by_rank,
    )


def megabytes(nbytes: int) -> str:
    """2500000 -> "2.5": a million bytes each."""
    return f"{nbytes / 1e6:.3g}" if nbytes < 1e8 else f"{nbytes / 1e6:.0f}"
