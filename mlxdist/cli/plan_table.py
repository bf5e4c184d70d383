"""What `mlxdist plan` prints: tables, and the reasons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mlxdist.planner import memory_model as sizes
from mlxdist.planner.memory_model import Model
from mlxdist.planner.time_model import Link


def show(
    model: Model,
    rows: Sequence[dict[str, Any]],
    links: Sequence[Link],
    step_time: float | None,
) -> None:
    """Memory, time and gain of each number of hosts; why the last one's mode."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(
        f"{model.elements:,} parameters in {_counted(len(model.entries), 'tensor')}, "
        f"{sizes.gigabytes(model.parameter_bytes)}, {model.optimizer}"
    )
    if model.left_out:
        left = f"{sizes.gigabytes(model.left_out)} of tensors that are no floats"
        console.print(f"{left} are not trained, and not counted below")
    needs = _table(model.modes)
    needs.add_column("take")
    names = [link.name for link in links]
    takes, gains = _table(names), _table(names)
    for row in rows:
        totals = (row["memory"][mode]["total"] for mode in model.modes)
        room = (sizes.short(total / 1e9) for total in totals)
        take = row["mode"] if row["fits"] else "nothing fits"
        needs.add_row(str(row["ranks"]), *room, take)
        times = [_seconds(row["seconds"][row["mode"]][name]) for name in names]
        takes.add_row(str(row["ranks"]), *(_range(map(sizes.short, t)) for t in times))
        if step_time:
            more = ([row["ranks"] * step_time / one for one in t[::-1]] for t in times)
            won = (_range(f"{one:.2g}" for one in several) for several in more)
            gains.add_row(str(row["ranks"]), *won)
    console.print("\nGB a rank, without activations:")
    console.print(needs)
    range_of = ", where an accelerator computes - where the CPU does"
    unknown = any(link.hides is None for link in links)
    console.print(f"\nseconds a step{range_of * unknown}:")
    console.print(takes)
    if step_time:
        console.print("\nhow many times the examples a second of one host:")
        console.print(gains)
    for row in rows:
        if row is rows[-1] or row["mode"] != rows[-1]["mode"] or not row["fits"]:
            who = _counted(row["ranks"], "host")
            console.print(f"\n{who}: {row['mode']}: {row['why']}.")
    if step_time is None:
        console.print("Seconds are the network's alone; --step-time adds computing.")


def _table(names: Iterable[str]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("hosts", *names):
        table.add_column(name, justify="right")
    return table


def _seconds(told: dict[str, Any]) -> list[float]:
    """Of a step: what is expected, or from the least to the most."""
    if told["expected"] is not None:
        return [told["expected"]]
    return [told["shortest"], told["longest"]]


def _range(numbers: Iterable[str]) -> str:
    return "-".join(dict.fromkeys(numbers))


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
