"""What a rank needs and how long a step takes, before anything is bought: pure numbers.

Time is a latency-bandwidth model (Hockney, Parallel Computing 20, 1994) of the pairwise
exchange: each rank sends (N-1)/N of the gradients and then (N-1)/N of the parameters,
each message costs a latency, and each byte what adding and copying it take (as in
Thakur, Rabenseifner, Gropp, IJHPCA 2005). Memory is the sum of what mlxdist keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..layout.entries import ITEM_SIZES
from .memory_model import Mode, Model, gigabytes, memory

# Of the wire's rate, what TCP over Ethernet leaves for data, in frames of 1500 bytes.
_PAYLOAD = 1 / 1.046
# Seconds a byte to copy what travels and to add it: two ranks of one x86-64 machine,
# which have no wire between them, take 0.4 to 0.6 ns. A faster host needs less.
_WORK = 0.4e-9
# What a host may send more than its share before sharing is not worth its memory.
_UNEVEN = 1.25
# Of a step's computing, the part in which gradients are already coming: the backward
# pass, twice the work of the forward one.
_BACKWARD = 2 / 3


@dataclass(frozen=True)
class Link:
    """What connects the hosts: bytes a second each way, and seconds a message.

    `shared`: one medium for all of them, both ways, as the air is. `work`: seconds a
    byte that a rank needs to add and copy what travels, where that was measured.
    `hides`: how much of what can travel behind computing does, from 0, where both want
    the same cores, to 1; None where it was not measured.
    """

    name: str
    bandwidth: float
    latency: float
    shared: bool = False
    work: float = 0.0
    hides: float | None = None

    def seconds(self, sent: float, messages: int, ranks: int) -> float:
        """Until each of `ranks` has sent so many bytes, and got as many."""
        shares = 2 * ranks if self.shared else 1  # of the air: all ranks, both ways
        return sent * (shares / self.bandwidth + self.work) + messages * self.latency


def ethernet(name: str, bits: float, latency: float = 50e-6) -> Link:
    """A wire of so many bits a second each way, less headers."""
    return Link(name, bits / 8 * _PAYLOAD, latency, work=_WORK)


# Wi-Fi: what TCP gets of a good 802.11ax link. Latencies, and that Thunderbolt's bridge
# carries its line rate, are assumptions: `mlxdist doctor` measures the real ones.
LINKS = {
    one.name: one
    for one in (
        ethernet("thunderbolt5", 80e9, 20e-6),
        ethernet("10gbe", 10e9, 30e-6),
        ethernet("1gbe", 1e9, 60e-6),
        Link("wifi", 600e6 / 8, 3e-3, shared=True, work=_WORK),
    )
}


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step.

    Attributes:
        local: computing and updating, without any network.
        wire: sending and receiving, if nothing else went on meanwhile.
        hidden: the part of `wire` that can go on beside the backward pass.
        hides: how much of that does, on these hosts; None where it is not known.
    """

    local: float
    wire: float
    hidden: float
    hides: float | None = None

    @property
    def expected(self) -> float | None:
        """On hosts that were measured."""
        if self.hides is None:
            return None
        return self.longest - self.hides * self.hidden

    @property
    def longest(self) -> float:
        """Nothing of the exchange hides behind computing: where both need the CPU."""
        return self.local + self.wire

    @property
    def shortest(self) -> float:
        """All hides that can: where an accelerator computes and the CPU sends."""
        return self.longest - self.hidden


def step_time(
    model: Model,
    ranks: int,
    mode: Mode,
    link: Link,
    *,
    local: float,
    update: float = 0.0,
) -> StepTime:
    """Seconds of a step on `ranks` hosts.

    Args:
        local: seconds of a step of one rank by itself, on its share of the batch.
        update: seconds of those in which the optimizer updates; 0 where unknown.
    """
    if ranks == 1:
        return StepTime(local, 0.0, 0.0, link.hides)
    backward = (local - update) * _BACKWARD
    if mode != "replicated":
        local -= update * (1 - 1 / ranks)
    plan = model.plan(ranks, mode)
    sent = (ranks - 1) / ranks * model.parameter_bytes
    sent *= unevenness(model, ranks, mode)
    half = link.seconds(sent, len(plan.buckets) * (ranks - 1), ranks)
    # All buckets but the last travel while others are computed: their gradients, and
    # for replicated state the means as well, since no update comes between.
    early = half * (1 - 1 / len(plan.buckets)) * (2 if mode == "replicated" else 1)
    return StepTime(local, 2 * half, min(early, backward), link.hides)


def unevenness(model: Model, ranks: int, mode: Mode) -> float:
    """What the busiest rank sends, as a part of what each would if all sent the same.

    The owner of a tensor sends it to all others; who owns a large one sends for long.
    """
    if mode != "tensors":
        return 1.0
    plan, owned = model.plan(ranks, mode), [0] * ranks
    for bucket in plan.buckets:
        for rank in range(ranks):
            start, stop = bucket.span(rank)
            owned[rank] += (stop - start) * ITEM_SIZES[bucket.dtype]
    return max(1.0, max(owned) * ranks / model.parameter_bytes)


def measured_link(told: object) -> Link:
    """The slowest pair of what `mlxdist doctor --json` found.

    Where all ranks exchanging together took longer than that pair would, by itself,
    the rest is their work: they add and copy, and may share cores or a switch. What
    they saved by computing meanwhile is what can hide.

    Raises:
        ValueError: it found no links between hosts, or what is none.
    """
    links = told.get("links") if isinstance(told, dict) else None
    pairs = links.get("pairs") if isinstance(links, dict) else None
    wanted = "wanted what `mlxdist doctor -H ... --json` prints"
    if not isinstance(links, dict) or not isinstance(pairs, list) or not pairs:
        raise ValueError(f"no measured links: {wanted}")
    hosts = links.get("hosts", [])
    if not isinstance(hosts, list) or len(set(map(str, hosts))) == 1:
        raise ValueError(f"its links are within one host: {wanted} of several")
    try:
        bandwidth = min(_number(pair, "bandwidth", 1.0, 1e15) for pair in pairs)
        latency = max(_number(pair, "latency", 0.0, 1e6) for pair in pairs)
        link = Link("measured", bandwidth, latency)
        return _as_together(link, links)
    except ValueError as error:
        raise ValueError(f"{error}; {wanted}") from None


def _number(told: object, name: str, least: float, most: float) -> float:
    """A number of what doctor found.

    Raises:
        ValueError: there is none, or none that can be.
    """
    found: Any = told.get(name) if isinstance(told, dict) else None
    if type(found) not in (int, float) or not least <= found <= most:  # nan is not
        raise ValueError(f"its {name} is {str(found)[:40]}")
    return float(found)


def _as_together(link: Link, links: Mapping[str, Any]) -> Link:
    """The link as it was when all ranks exchanged."""
    whole = links.get("exchange")
    if whole is None:
        raise ValueError("it has no exchange of all ranks: run doctor again")
    ranks = int(_number(links, "ranks", 2, 2**20))
    buckets = int(_number(whole, "buckets", 1, 2**20))
    sent = 2 * (ranks - 1) / ranks * _number(whole, "bytes", 1, 1e15)
    names = ("seconds", "computing", "both")
    seconds, computing, both = (_number(whole, name, 1e-9, 1e9) for name in names)
    bare = link.seconds(sent, 2 * buckets * (ranks - 1), ranks)
    could = min(seconds, computing) * (1 - 1 / buckets)
    saved = (seconds + computing - both) / could if could else 0.0
    hides = min(1.0, max(0.0, saved))
    return replace(link, work=max(0.0, (seconds - bare) / sent), hides=hides)


class Choice(NamedTuple):
    """How to keep the optimizer's state, why, and whether that fits into memory."""

    mode: Mode
    why: str
    fits: bool = True


def choice(model: Model, ranks: int, room: float | None = None) -> Choice:
    """Which mode to take, and why.

    Args:
        room: bytes that a rank has for what `memory` counts.
    """
    best: Mode = model.modes[-1] if ranks > 1 else "replicated"
    whole, shared = memory(model, ranks, "replicated"), memory(model, ranks, best)
    if room is not None and shared.total > room:
        return Choice(best, _too_large(shared.total, room), fits=False)
    if ranks == 1:
        return Choice(best, "with one rank there is nothing to share")
    saved = whole.total - shared.total
    why = f"saves {gigabytes(saved)} of {gigabytes(whole.total)} a rank"
    times = unevenness(model, ranks, best)
    sends = "sends no more, and each rank updates its share alone"
    if times > _UNEVEN:
        owner = "whoever owns the largest tensors"
        sends = f"but {owner} sends {times:.1f} times as much as without"
    if room is not None and whole.total > room:
        return Choice(best, f"{why}, which has {gigabytes(room)}; {sends}")
    if saved < 0.02 * whole.total:
        only = f"sharing {why} only, and replicated works in mx.compile"
        return Choice("replicated", only)
    if times > _UNEVEN:
        return Choice("replicated", f"sharing {why}, {sends}")
    return Choice(best, f"{why}, {sends}")


def _too_large(needed: float, room: float) -> str:
    return (
        f"nothing fits: it needs {gigabytes(needed)} of {gigabytes(room)} a rank; take "
        "a narrower dtype or an optimizer with less state, since parameters and "
        "gradients are whole on each rank"
    )
