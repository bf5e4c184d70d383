"""The tables of `mlxdist plan`: memory, step time and speed-up by number of hosts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..layout.wording import counted
from ..planner import Link, Model, Prediction, StepTime
from .number_format import gigabytes, short
from .plan_report import reason

if TYPE_CHECKING:
    from rich.table import Table


def show(
    model: Model,
    predictions: Sequence[Prediction],
    links: Sequence[Link],
    local: float | None,
) -> None:
    """Print the tables, and the reason for the strategy of the most hosts.

    Args:
        local: seconds of a step on one host, for the speed-up; None if unknown.
    """
    from rich.console import Console

    console = Console(highlight=False)
    console.print(
        f"{counted(model.elements, 'parameter')} in "
        f"{counted(len(model.entries), 'tensor')}, "
        f"{gigabytes(model.parameter_bytes)}, {model.optimizer}"
    )
    if model.untrained_bytes:
        untrained = (
            f"{gigabytes(model.untrained_bytes)} of tensors that are not floating-point"
        )
        console.print(f"{untrained} are not trained, and not counted below")
    console.print("\nGB per rank, without activations:")
    console.print(_memory_table(model, predictions))
    bounds = ", computing on an accelerator - on the CPU"
    is_range = any(link.overlap is None for link in links)
    console.print(f"\nseconds per step{bounds * is_range}:")
    console.print(_time_table(predictions, links))
    if local:
        console.print("\nspeed-up over one host, in examples per second:")
        console.print(_speed_up_table(predictions, links, local))
    last = predictions[-1]
    for each in predictions:
        choice = each.choice
        if each is last or choice.strategy != last.choice.strategy or not choice.fits:
            hosts = counted(each.ranks, "host")
            console.print(f"\n{hosts}: {choice.strategy}: {reason(choice)}.")
    if local is None:
        console.print("Only communication is counted; --step-time adds computation.")


def _memory_table(model: Model, predictions: Sequence[Prediction]) -> Table:
    table = _table(model.strategies)
    table.add_column("best")
    for each in predictions:
        totals = (short(m.total / 1e9) for m in each.memory.values())
        best = each.choice.strategy if each.choice.fits else "nothing fits"
        table.add_row(str(each.ranks), *totals, best)
    return table


def _time_table(predictions: Sequence[Prediction], links: Sequence[Link]) -> Table:
    table = _table(link.name for link in links)
    for each in predictions:
        times = each.step_times[each.choice.strategy].values()
        table.add_row(str(each.ranks), *(_range(map(short, _bounds(t))) for t in times))
    return table


def _speed_up_table(
    predictions: Sequence[Prediction], links: Sequence[Link], local: float
) -> Table:
    table = _table(link.name for link in links)
    for each in predictions:
        times = each.step_times[each.choice.strategy].values()
        speed_ups = (
            [each.ranks * local / seconds for seconds in reversed(_bounds(time))]
            for time in times
        )
        cells = (_range(f"{value:.2g}" for value in pair) for pair in speed_ups)
        table.add_row(str(each.ranks), *cells)
    return table


def _table(columns: Iterable[str]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("hosts", *columns):
        table.add_column(name, justify="right")
    return table


def _bounds(time: StepTime) -> list[float]:
    """Return the expected seconds, or the shortest and the longest."""
    if time.expected is not None:
        return [time.expected]
    return [time.shortest, time.longest]


def _range(numbers: Iterable[str]) -> str:
    """Format `0.1-0.3`, or one number if both bounds are written alike."""
    return "-".join(dict.fromkeys(numbers))
