"""Step time on N hosts: a latency-bandwidth model of the gradient exchange.

The model is Hockney's (Parallel Computing 20, 1994), applied to the pairwise exchange:
each rank sends (N-1)/N of the gradients, then (N-1)/N of the parameters. A message
costs a latency, and a byte costs its transfer plus the time to copy and add it (Thakur,
Rabenseifner, Gropp, IJHPCA 2005).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..layout import ITEM_SIZES, Strategy
from .memory_model import Model

# Share of Ethernet's bit rate that TCP leaves for data, in frames of 1500 bytes.
_PAYLOAD = 1 / 1.046
# Seconds per byte to copy and add the data. Two ranks on one x86-64 machine, with no
# wire between them, take 0.4 to 0.6 ns; faster hosts need less.
CPU_SECONDS_PER_BYTE = 0.4e-9
# Share of the compute time in which gradients are already available: the backward
# pass, which does twice the work of the forward pass.
_BACKWARD = 2 / 3


@dataclass(frozen=True)
class Link:
    """A network link between hosts.

    Attributes:
        bandwidth: bytes per second in each direction.
        latency: seconds per message.
        shared: whether all hosts share one medium for both directions, as with Wi-Fi.
        cpu_per_byte: seconds per byte that a rank needs to copy and add the data.
        overlap: measured fraction, 0 to 1, of the overlappable communication that
            does overlap the computation; None if it was not measured.
    """

    name: str
    bandwidth: float
    latency: float
    shared: bool = False
    cpu_per_byte: float = 0.0
    overlap: float | None = None

    def seconds(self, nbytes: float, messages: int, ranks: int) -> float:
        """Return the time in which every rank sends, and receives, `nbytes`."""
        users = 2 * ranks if self.shared else 1
        per_byte = users / self.bandwidth + self.cpu_per_byte
        return nbytes * per_byte + messages * self.latency


def ethernet(name: str, bits: float, latency: float = 50e-6) -> Link:
    """Return a full-duplex link of `bits` per second, less TCP's and IP's headers."""
    return Link(name, bits / 8 * _PAYLOAD, latency, cpu_per_byte=CPU_SECONDS_PER_BYTE)


# Wi-Fi has the TCP throughput of a good 802.11ax connection. The latencies are assumed,
# and so is Thunderbolt's line rate over its bridge: `mlxdist doctor` measures both.
LINKS = {
    link.name: link
    for link in (
        ethernet("thunderbolt5", 80e9, 20e-6),
        ethernet("10gbe", 10e9, 30e-6),
        ethernet("1gbe", 1e9, 60e-6),
        Link("wifi", 600e6 / 8, 3e-3, shared=True, cpu_per_byte=CPU_SECONDS_PER_BYTE),
    )
}


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step.

    Attributes:
        local: computation and update, without any communication.
        communication: all communication, as if nothing overlapped it.
        overlappable: the part of it that can overlap the backward pass.
        overlap: measured fraction of `overlappable` that does overlap, or None.
    """

    local: float
    communication: float
    overlappable: float
    overlap: float | None = None

    @property
    def longest(self) -> float:
        """Step time without overlap, as where computation and MPI share the CPU."""
        return self.local + self.communication

    @property
    def shortest(self) -> float:
        """Step time with full overlap, as where an accelerator computes."""
        return self.longest - self.overlappable

    @property
    def expected(self) -> float | None:
        """Step time with the measured overlap; None if it was not measured."""
        if self.overlap is None:
            return None
        return self.longest - self.overlap * self.overlappable


def step_time(
    model: Model,
    ranks: int,
    strategy: Strategy,
    link: Link,
    *,
    local: float,
    update: float = 0.0,
) -> StepTime:
    """Predict the step time on `ranks` hosts.

    Args:
        local: seconds of a step on one rank alone, with its share of the batch.
        update: seconds of `local` that the optimizer's update takes; 0 if unknown.
    """
    if ranks == 1:
        return StepTime(local, 0.0, 0.0, link.overlap)
    backward = (local - update) * _BACKWARD
    if strategy != "replicated":
        local -= update * (1 - 1 / ranks)
    buckets = len(model.plan(ranks, strategy).buckets)
    nbytes = (ranks - 1) / ranks * model.parameter_bytes
    nbytes *= imbalance(model, ranks, strategy)
    one_way = link.seconds(nbytes, buckets * (ranks - 1), ranks)
    # All buckets but the last are sent while later gradients are still computed. With
    # replicated state no update comes between, so their means are returned then, too.
    phases = 2 if strategy == "replicated" else 1
    overlappable = min(phases * one_way * (1 - 1 / buckets), backward)
    return StepTime(local, 2 * one_way, overlappable, link.overlap)


def imbalance(model: Model, ranks: int, strategy: Strategy) -> float:
    """Return the bytes the busiest rank sends, relative to an even distribution.

    A tensor's owner sends it to all other ranks, so a large tensor delays its owner.
    """
    if strategy != "tensors":
        return 1.0
    owned_bytes = [0] * ranks
    for bucket in model.plan(ranks, strategy).buckets:
        for rank in range(ranks):
            start, stop = bucket.span(rank)
            owned_bytes[rank] += (stop - start) * ITEM_SIZES[bucket.dtype]
    return max(1.0, max(owned_bytes) * ranks / model.parameter_bytes)
