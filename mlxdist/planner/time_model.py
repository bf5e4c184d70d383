"""Step time on N hosts: a latency-bandwidth model of the gradient exchange.

The model is Hockney's (Parallel Computing 20, 1994), applied to the pairwise exchange:
each rank sends (N-1)/N of the gradients, then (N-1)/N of the parameters. A message
costs a latency, and a byte costs its transfer plus the time to copy and add it (Thakur,
Rabenseifner, Gropp, IJHPCA 2005). Each of these is a term of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

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

    def users(self, ranks: int) -> int:
        """Return how many transfers share the bandwidth at a time."""
        return 2 * ranks if self.shared else 1

    def exchange(self, nbytes: float, messages: int, ranks: int) -> Exchange:
        """Return the time in which every rank sends, and receives, `nbytes`."""
        return Exchange(
            nbytes,
            messages,
            nbytes * self.users(ranks) / self.bandwidth,
            messages * self.latency,
            nbytes * self.cpu_per_byte,
        )


class Exchange(NamedTuple):
    """What every rank sends, and the seconds that this takes, as a sum of three terms.

    Attributes:
        nbytes: sent, and as many received.
        messages: sent, one after the other.
        transfer: bytes over bandwidth.
        waiting: messages times latency.
        copying: bytes times the CPU time to copy and add one.
    """

    nbytes: float
    messages: int
    transfer: float
    waiting: float
    copying: float

    @property
    def seconds(self) -> float:
        return self.transfer + self.waiting + self.copying

    def plus(self, other: Exchange) -> Exchange:
        """Return both, one after the other."""
        return Exchange(
            self.nbytes + other.nbytes,
            self.messages + other.messages,
            self.transfer + other.transfer,
            self.waiting + other.waiting,
            self.copying + other.copying,
        )


NOTHING_SENT = Exchange(0.0, 0, 0.0, 0.0, 0.0)


def ethernet(name: str, bits: float, latency: float = 50e-6) -> Link:
    """Return a full-duplex link of `bits` per second, less TCP's and IP's headers."""
    return Link(name, bits / 8 * _PAYLOAD, latency, cpu_per_byte=CPU_SECONDS_PER_BYTE)


# Wi-Fi has the TCP throughput of a good 802.11ax connection. Between two hosts
# Thunderbolt 4 sends 20 Gbit/s each way; its 40 are both directions. Public reports of
# iperf3 over a Mac's Thunderbolt bridge give 16 Gbit/s. The latencies are assumed, and
# so is the line rate over the bridge: `mlxdist doctor` measures both.
LINKS = {
    link.name: link
    for link in (
        ethernet("thunderbolt5", 80e9, 20e-6),
        ethernet("thunderbolt4", 20e9, 20e-6),
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
        exchange: all communication, as if nothing overlapped it.
        overlappable: the part of it that can overlap the backward pass.
        overlap: measured fraction of `overlappable` that does overlap, or None.
    """

    local: float
    exchange: Exchange
    overlappable: float
    overlap: float | None = None

    @property
    def communication(self) -> float:
        return self.exchange.seconds

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
    accumulate: int = 1,
    accumulate_sharded: bool = False,
) -> StepTime:
    """Predict the step time on `ranks` hosts.

    Args:
        local: seconds of a step on one rank alone, with its share of the batch.
        update: seconds of `local` that the optimizer's update takes; 0 if unknown.
        accumulate: micro-batches of a step. Their sums are sent in float32.
        accumulate_sharded: whether gradients are sent after each of them.
    """
    if ranks == 1:
        return StepTime(local, NOTHING_SENT, 0.0, link.overlap)
    backward = (local - update) * _BACKWARD
    if strategy != "replicated":
        local -= update * (1 - 1 / ranks)
    share = (ranks - 1) / ranks * imbalance(model, ranks, strategy)
    buckets = len(model.plan(ranks, strategy).buckets)
    messages = buckets * (ranks - 1)
    means, times = _gradient_bytes(model, accumulate), 1
    if accumulate_sharded:
        times = accumulate
    else:
        backward /= accumulate  # only the last one can overlap
    reduce = link.exchange(share * times * means, times * messages, ranks)
    gather = link.exchange(share * model.parameter_bytes, messages, ranks)
    # All buckets but the last are sent while later gradients are still computed. With
    # replicated state no update comes between, so their means are returned then, too.
    early = reduce.plus(gather) if strategy == "replicated" else reduce
    overlappable = min(early.seconds * (1 - 1 / buckets), backward)
    return StepTime(local, reduce.plus(gather), overlappable, link.overlap)


def _gradient_bytes(model: Model, accumulate: int) -> int:
    """Return the bytes of gradients that are exchanged: sums are float32."""
    if accumulate == 1:
        return model.parameter_bytes
    return sum(e.size * max(4, ITEM_SIZES[e.dtype]) for e in model.entries)


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
