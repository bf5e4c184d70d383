"""A description of an optimizer's plan, in words and figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..comm.collectives import Traffic
from ..layout.memory import Memory
from ..layout.sharding import Plan
from ..layout.wording import counted
from .inner_optimizer import InnerOptimizer
from .options import Options
from .pipeline import Pipelines
from .rank_memory import RankMemory
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
        memory: of this rank at the peak of a step, by "update" and "minimize".
        savings: bytes that other options would save on this rank, by their text.
        activations: bytes of a forward and backward pass, if it was measured.
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
    memory: Mapping[str, Memory] = field(default_factory=dict)
    savings: Mapping[str, int] = field(default_factory=dict)
    activations: int | None = None
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
        lines = self._one_rank() if self.plan.ranks == 1 else self._several_ranks()
        lines += self._memory_lines()
        if self.overlaps_forward:
            lines.append("new parameters arrive behind the next forward pass")
        if self.begun_anew:
            lines.append(f"new state since the last init: {', '.join(self.begun_anew)}")
        return "\n".join(lines)

    @property
    def _parameters(self) -> str:
        elements = sum(entry.size for entry in self.plan.entries)
        return (
            f"{counted(elements, 'parameter')} in "
            f"{counted(len(self.plan.entries), 'tensor')}"
        )

    @property
    def _update(self) -> str:
        return "update compiled" if self.compiled else "update not compiled"

    def _one_rank(self) -> list[str]:
        return [
            f"{self.optimizer} on one rank, {self._update}",
            f"{self._parameters}, {megabytes(self.state_bytes)} MB of state",
        ]

    def _several_ranks(self) -> list[str]:
        plan = self.plan
        lines = [
            f"{self.optimizer}, {plan.strategy}, {counted(plan.ranks, 'rank')}, "
            f"transport {self.transport}, {self._update}",
            f"{self._parameters}, {counted(len(plan.buckets), 'bucket')}",
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
        return lines

    def _memory_lines(self) -> list[str]:
        """This rank's memory as sums, what would be less, and what is not counted."""
        columns = []
        for memory in self.memory.values():
            column = {term.name: term.nbytes for term in memory.terms}
            if self.activations is not None:
                column["activations"] = self.activations
            columns.append({**column, "sum": sum(column.values())})
        whose = "" if self.plan.ranks == 1 else f" of rank {self.rank}"
        lines = [_row(f"memory{whose} in MB", self.memory)]
        for name in dict.fromkeys(name for column in columns for name in column):
            cells = (megabytes(c[name]) if name in c else "-" for c in columns)
            lines.append(_row(name, cells))
        for text, nbytes in self.savings.items():
            lines.append(f"{text} would save {megabytes(nbytes)} MB")
        lines.append("not counted: the process, and memory that MLX keeps to use again")
        if self.activations is None:
            lines.append(
                "nor activations, which describe(loss_fn, model, *batch) measures"
            )
        return lines


def _row(name: str, cells: Iterable[str]) -> str:
    return f"{name:<24}" + "".join(f"{cell:>10}" for cell in cells)


def describe(
    made: Initialized,
    pipelines: Pipelines,
    inner: InnerOptimizer,
    options: Options,
    *,
    accumulates: bool,
    activations: int | None = None,
) -> Description:
    """Describe a plan on its transport.

    Args:
        made: by `init`.
        accumulates: whether sums of micro-batches are exchanged, which are float32.
        activations: see `Description`.
    """
    wire, plan = pipelines.eager.wire, pipelines.plan
    sums = "float32" if accumulates else None
    rank_memory = RankMemory(
        plan,
        wire.comm.rank,
        inner,
        options,
        frozen=made.frozen_bytes,
        overlaps=wire.comm.overlaps,
        rounds_means=wire.comm.adds_in_rank_order,
    )
    accumulate = max(options.accumulate, 1 + accumulates)
    return Description(
        plan=plan,
        optimizer=type(inner.optimizer).__name__,
        transport=wire.comm.name,
        rank=wire.comm.rank,
        traffic=wire.expected(sums, pairwise=options.reproducible),
        compiled=pipelines.eager.local.is_compiled,
        state_bytes_by_rank=made.state_bytes_by_rank,
        memory={
            "update": rank_memory.at_peak(minimize=False, accumulate=accumulate),
            "minimize": rank_memory.at_peak(minimize=True, accumulate=accumulate),
        },
        savings=rank_memory.savings(),
        activations=activations,
        begun_anew=made.begun_anew,
        overlaps_forward=wire.is_deferred,
    )


def megabytes(nbytes: int) -> str:
    """2500000 -> "2.5": a million bytes each."""
    return f"{nbytes / 1e6:.3g}" if nbytes < 1e8 else f"{nbytes / 1e6:.0f}"
