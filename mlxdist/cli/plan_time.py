"""The times that `mlxdist plan` prints, as sums of their terms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..planner import MOST_IMBALANCE, Link, Model, Prediction, StepTime
from .number_format import gigabytes, short

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def show(
    console: Console,
    model: Model,
    predictions: Sequence[Prediction],
    links: Sequence[Link],
    local: float | None,
) -> None:
    """Print the communication of a step, and the step where its computation is known.

    Args:
        predictions: of two hosts or more.
        local: seconds of a step on one host; None if unknown.
    """
    console.print("\n[bold]Seconds of communication in a step on N hosts[/bold]\n")
    for line in _rules(model, predictions):
        console.print(f"[dim]{line}[/dim]")
    for link in links:
        shared = " shared by 2N transfers" * link.shared
        console.print(
            f"\n{link.name}: {short(link.bandwidth / 1e9)} GB/s{shared}, "
            f"{short(link.latency * 1e6)} us a message, "
            f"{short(link.cpu_per_byte * 1e9)} s a GB to copy"
        )
        console.print(_communication_table(predictions, link))
    if local:
        console.print("\n[bold]Seconds of a step on N hosts[/bold]\n")
        for line in _STEP_RULES:
            console.print(f"[dim]{line}[/dim]")
        for link in links:
            console.print(f"\n{link.name}:")
            console.print(_step_table(predictions, link, local))


_STEP_RULES = (
    "step    = computing + sending - overlap",
    "overlap = with the backward pass: as much on an accelerator, 0 on a CPU",
    "speed   = examples a second / those of one host",
)


def _rules(model: Model, predictions: Sequence[Prediction]) -> list[str]:
    """Return how the terms come about, to check them by hand."""
    first = predictions[0]
    ranks, imbalance = first.ranks, first.best.imbalance
    sent = next(iter(first.times.values())).exchange
    both = sent.nbytes * ranks / (ranks - 1) / imbalance
    parameters = gigabytes(model.parameter_bytes)
    gradients = gigabytes(both - model.parameter_bytes)
    most = max(each.best.imbalance for each in predictions)
    more = f", and up to {most:.1f} times that" * (most > MOST_IMBALANCE)
    buckets = len(model.plan(ranks, first.best.strategy).buckets)
    return [
        f"GB sent  = (N-1)/N x ({gradients} of gradients + {parameters} of "
        f"parameters){more}",
        f"messages = (N-1) x {sent.messages // (ranks - 1):,}, for {buckets:,} buckets",
        "transfer = GB sent / rate",
        "latency  = messages x the latency of one",
        "copying  = GB sent x the CPU time to copy a GB, and to add it",
    ]


def _communication_table(predictions: Sequence[Prediction], link: Link) -> Table:
    table = _table("N", "GB sent", "messages", "transfer", "latency", "copying")
    table.add_column("= seconds", justify="right")
    for each in predictions:
        exchange = each.times[link.name].exchange
        terms = exchange.transfer, exchange.waiting, exchange.copying
        table.add_row(
            str(each.ranks),
            short(exchange.nbytes / 1e9),
            f"{exchange.messages:,}",
            *map(short, terms),
            short(exchange.seconds),
        )
    return table


def _step_table(predictions: Sequence[Prediction], link: Link, local: float) -> Table:
    table = _table("N", "computing", "sending", "overlap", "= step")
    table.add_column("speed")
    for each in predictions:
        time = each.times[link.name]
        table.add_row(
            str(each.ranks),
            short(time.local),
            short(time.communication),
            _overlap(time),
            _range(map(short, bounds(time))),
            speed_text(each.ranks, local, bounds(time)),
        )
    return table


def _overlap(time: StepTime) -> str:
    """The seconds that overlap: measured, or from none to all that can."""
    if time.overlap is not None:
        return short(time.overlap * time.overlappable)
    return _range(map(short, (0.0, time.overlappable)))


def speed_text(ranks: int, local: float, seconds: Sequence[float]) -> str:
    """Return examples per second relative to one host, in words.

    Args:
        local: seconds of a step on one host.
        seconds: of a step, expected, or shortest and longest.
    """
    ratios = sorted(ranks * local / each for each in seconds)
    if max(ratios) < 0.01:
        return "below 0.01: slower than one machine"
    text = _range(f"{ratio:.2g}" for ratio in ratios)
    if max(ratios) < 1:
        return f"{text}: slower than one machine"
    return text + ": may be slower than one machine" * (min(ratios) < 1)


def bounds(time: StepTime) -> list[float]:
    """Return the expected seconds, or the shortest and the longest."""
    if time.expected is not None:
        return [time.expected]
    return [time.shortest, time.longest]


def _range(numbers: Iterable[str]) -> str:
    """Format `0.1-0.3`, or one number if both are written alike."""
    return "-".join(dict.fromkeys(numbers))


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in columns:
        table.add_column(name, justify="right")
    return table
