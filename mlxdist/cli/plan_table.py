"""The page of `mlxdist plan`: a choice as Python and as sums, the others, and time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..layout.wording import counted
from ..planner import Choice, Link, Model, Prediction
from . import plan_report, plan_time
from .number_format import gigabytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# A narrower terminal wraps the lines itself: no word or figure is cut off.
_LEAST_WIDTH = 80

# Columns of the choices; what is in none of them is in the last.
_COLUMNS = {
    "gradients": ("gradients", "gradient sums", "mean gradients"),
    "state": ("state",),
    "masters": ("master weights",),
    "EMA": ("EMA weights",),
}


def show(
    model: Model,
    predictions: Sequence[Prediction],
    links: Sequence[Link],
    local: float | None,
    available: float | None,
) -> None:
    """Print the page.

    Args:
        local: seconds of a step on one host, for the speed-up; None if unknown.
        available: bytes of a rank; None if unknown.
    """
    from rich.console import Console

    width = max(_LEAST_WIDTH, Console().width)
    console = Console(highlight=False, width=width)
    console.print(model_text(model))
    shown = shown_in_full(predictions)
    _show_recommended(console, model, shown, available)
    _show_choices(console, shown, available)
    if len(predictions) > 1:
        _show_hosts(console, predictions)
    several = [each for each in predictions if each.ranks > 1]
    if several:
        plan_time.show(console, model, several, links, local)
    _show_not_counted(console, model, shown, local)


def model_text(model: Model) -> str:
    """Return the size of a model, and its optimizer."""
    dtypes = ", ".join(sorted({entry.dtype for entry in model.entries}))
    return (
        f"{counted(model.elements, 'parameter')} in {dtypes}, "
        f"{gigabytes(model.parameter_bytes)}, {plan_report.CLASSES[model.optimizer]}"
    )


def shown_in_full(predictions: Sequence[Prediction]) -> Prediction:
    """Return the prediction of the fewest hosts that fit, but not of one if possible.

    If nothing fits it is that of the most hosts.
    """
    fitting = [each for each in predictions if each.recommended]
    if not fitting:
        return max(predictions, key=lambda each: each.ranks)
    return min(fitting, key=lambda each: (each.ranks == 1, each.ranks))


def _show_recommended(
    console: Console, model: Model, shown: Prediction, available: float | None
) -> None:
    """Print the choice as Python, and its memory as a sum."""
    best, hosts = shown.best, counted(shown.ranks, "host")
    total = gigabytes(best.memory.total)
    if available is None:
        title = f"On {hosts}, what costs neither time nor accuracy: {total} a rank"
    elif shown.recommended:
        title = (
            f"On {hosts} with {gigabytes(available)} a rank, the cheapest change that "
            f"fits: {total}"
        )
    else:
        title = (
            f"Nothing fits: on {hosts} with {gigabytes(available)} a rank, the "
            f"smallest needs {total}"
        )
    console.print(f"\n[bold]{title}[/bold]\n")
    for line in plan_report.python_lines(model, best):
        console.print(f"    {line}", markup=False)
    console.print()
    table = _table()
    table.add_column("memory of a rank")
    table.add_column("")
    table.add_column("GB", justify="right")
    for term in best.memory.terms:
        text = plan_report.sum_text(term, model, shown.ranks)
        table.add_row(term.name, text, f"{term.nbytes / 1e9:,.3f}")
    table.add_row("sum", "", f"{best.memory.total / 1e9:,.3f}", style="bold")
    console.print(table)
    if caution := plan_report.caution(best):
        console.print(f"{caution}.")


def _show_choices(console: Console, shown: Prediction, available: float | None) -> None:
    """Print all choices, the cheapest change of behaviour first."""
    hosts = counted(shown.ranks, "host")
    if len(shown.choices) == 1:
        return
    console.print(f"\n[bold]All choices on {hosts}, the cheapest change first[/bold]\n")
    columns = _used_columns([shown])
    table = _memory_table("", columns)
    for choice in shown.choices:
        chosen = choice is shown.recommended
        name = ("* " if chosen else "  ") + (", ".join(choice.changes) or "as it is")
        table.add_row(
            name, *_memory_cells(choice, columns), style="bold" if chosen else ""
        )
    console.print(table)
    used = {change for choice in shown.choices for change in choice.changes}
    legend = _table(header=False)
    for change, meaning in plan_report.MEANINGS.items():
        if change in used:
            legend.add_row(change, meaning)
    counted_names = [name for column in columns for name in _COLUMNS[column]]
    rest = [t.name for t in shown.best.memory.terms if t.name not in counted_names]
    legend.add_row("rest", ", ".join(rest))
    if available is None:
        legend.add_row("*", "costs neither time nor accuracy")
    elif shown.recommended:
        legend.add_row("*", f"the cheapest change that fits {gigabytes(available)}")
    console.print()
    console.print(legend)


def _show_hosts(console: Console, predictions: Sequence[Prediction]) -> None:
    """Print the choice for each number of hosts."""
    console.print("\n[bold]By number of hosts[/bold]\n")
    columns = _used_columns(predictions)
    table = _memory_table("hosts", columns)
    table.columns[0].justify = "right"
    table.add_column("")
    for each in predictions:
        name = ", ".join(each.best.changes) or "as it is"
        if not each.recommended:
            name = "nothing fits"
        table.add_row(str(each.ranks), *_memory_cells(each.best, columns), name)
    console.print(table)


def _show_not_counted(
    console: Console, model: Model, shown: Prediction, local: float | None
) -> None:
    console.print(
        "\nNot counted: activations, which optimizer.describe(loss_fn, model, *batch) "
        "measures; and freed memory that MLX keeps to use again, which "
        "mx.set_cache_limit bounds."
    )
    if model.is_known_by_size and any("int8" in c.changes for c in shown.choices):
        console.print(
            "Embeddings keep their state in full where it is in 8 bits: a --model FILE "
            "says how large they are."
        )
    if local is None:
        console.print("--step-time adds the computation to the communication.")


def _used_columns(predictions: Sequence[Prediction]) -> list[str]:
    """Return the columns that are not 0 in all choices."""
    every = [choice.memory for each in predictions for choice in each.choices]
    return [
        column
        for column, names in _COLUMNS.items()
        if any(memory[name] for memory in every for name in names)
    ]


def _memory_table(first: str, columns: Sequence[str]) -> Table:
    table = _table()
    table.add_column(first)
    for name in (*columns, "rest", "= GB"):
        table.add_column(name, justify="right")
    return table


def _memory_cells(choice: Choice, columns: Sequence[str]) -> list[str]:
    """Return the terms of a choice's memory, the rest of them, and their sum."""
    memory = choice.memory
    sizes = [sum(memory[name] for name in _COLUMNS[column]) for column in columns]
    every = [*sizes, memory.total - sum(sizes), memory.total]
    digits = 1 if memory.total >= 1e10 else 3
    return [f"{nbytes / 1e9:,.{digits}f}" for nbytes in every]


def _table(*, header: bool = True) -> Table:
    from rich.table import Table

    return Table(box=None, pad_edge=False, header_style="dim", show_header=header)
