"""The chart of `mlxdist plan`: memory of each choice, and step time by hosts."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..layout.wording import counted
from ..planner import Choice, Link, Model, Prediction
from . import figures, plan_table, plan_time
from .number_format import gigabytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Parts of a bar, in their order, with the terms that each of them adds up.
_MEMORY = {
    "parameters": (figures.GRAY, ("parameters",)),
    "frozen parameters": (figures.LIGHT_GRAY, ("frozen parameters",)),
    "gradients": (figures.LIGHT_ORANGE, ("gradients", "gradient sums")),
    "mean gradients": (figures.ORANGE, ("mean gradients",)),
    "state": (figures.BLUE, ("state",)),
    "masters": (figures.LIGHT_BLUE, ("master weights",)),
    "EMA weights": (figures.PALE_BLUE, ("EMA weights",)),
    "buckets": (figures.NAVY, ("buckets",)),
    "process": (figures.BLACK, ("process",)),
}
_TIME = {
    "computing": figures.GRAY,
    "transfer": figures.BLUE,
    "latency": figures.PALE_BLUE,
    "copying": figures.LIGHT_BLUE,
}
# Inches: of the figure, of a bar, and what is above and below the bars of a panel.
_WIDTH, _ROW, _FRAME = 7.2, 0.42, 1.2
_LEGEND_COLUMNS = 4
_REMEDY = "install matplotlib with pip install 'mlxdist[plot]'"


def target(text: str) -> Path:
    """Parse the path of a chart, whose suffix is its format."""
    path = Path(text)
    if path.suffix not in figures.SUFFIXES:
        wanted = " or ".join(figures.SUFFIXES)
        raise argparse.ArgumentTypeError(
            f"found {text!r}, wanted a name that ends with {wanted}"
        )
    return path


def draw(
    path: Path,
    model: Model,
    predictions: Sequence[Prediction],
    links: Sequence[Link],
    local: float | None,
    available: float | None,
) -> list[Path]:
    """Draw the chart and return its files: of an SVG, also that for dark pages.

    Args:
        local: seconds of a step on one host, the ideal; None draws no time.
        available: bytes of a rank; None if unknown.

    Raises:
        ValueError: matplotlib is not installed.
    """
    shown = plan_table.shown_in_full(predictions)
    timed = links if local else ()
    bars = [len(shown.choices), *[len(predictions)] * len(timed)]
    title = f"{plan_table.model_text(model)}: predicted"
    size = (_WIDTH, _ROW * sum(bars) + _FRAME * len(bars) + 0.3)
    try:
        with figures.figure(
            path, title, size=size, heights=bars, grid="x", suffixes=[path.suffix]
        ) as axes:
            _draw_memory(axes[0], shown, available)
            for below, link in zip(axes[1:], timed, strict=True):
                _draw_time(below, predictions, link, local or 0.0)
    except ImportError as error:
        raise ValueError(f"--chart: {error}; {_REMEDY}") from error
    return [path, figures.dark_path(path)] if path.suffix == ".svg" else [path]


def memory_parts(choices: Sequence[Choice]) -> dict[str, list[float]]:
    """Return the GB of each part of a bar, choice by choice."""
    return {
        name: [sum(choice.memory[term] for term in terms) / 1e9 for choice in choices]
        for name, (_, terms) in _MEMORY.items()
    }


def _draw_memory(axes: Axes, shown: Prediction, available: float | None) -> None:
    """Draw a bar for each choice, the cheapest change of behaviour on top."""
    choices = shown.choices
    colors = {name: color for name, (color, _) in _MEMORY.items()}
    ends = _stack(axes, memory_parts(choices), colors)
    axes.set_yticks(range(len(choices)), [_name(each, shown) for each in choices])
    for row, (choice, end) in enumerate(zip(choices, ends, strict=True)):
        _note(axes, row, gigabytes(end * 1e9), bold=choice is shown.recommended)
    most = max(ends)
    if available is not None:
        limit = available / 1e9
        label = f"{gigabytes(available)} a rank"
        axes.axvline(limit, label=label, color=figures.BLACK, ls="--", lw=1.5)
        most = max(most, min(limit, 2 * most))
    axes.set_xlim(0, 1.02 * most)
    axes.set_xlabel("GB a rank, without activations")
    hosts = counted(shown.ranks, "host")
    _finish(axes, f"Memory of a rank on {hosts}, the cheapest change first")


def _draw_time(
    axes: Axes, predictions: Sequence[Prediction], link: Link, local: float
) -> None:
    """Draw a bar for each number of hosts, and what overlap takes from it."""
    times = [each.times[link.name] for each in predictions]
    parts = {
        "computing": [time.local for time in times],
        "transfer": [time.exchange.transfer for time in times],
        "latency": [time.exchange.waiting for time in times],
        "copying": [time.exchange.copying for time in times],
    }
    ends = _stack(axes, parts, _TIME)
    for row, (each, time) in enumerate(zip(predictions, times, strict=True)):
        speed = plan_time.speed_text(each.ranks, local, plan_time.bounds(time))
        _note(axes, row, f"speed {speed.partition(':')[0]}")
    shortest = [min(plan_time.bounds(time)) for time in times]
    label = "with full overlap" if link.overlap is None else "with measured overlap"
    color = figures.ORANGE
    axes.plot(shortest, range(len(times)), "|", label=label, color=color, ms=14, mew=3)
    label = "ideal: as on one host"
    axes.axvline(local, label=label, color=figures.BLACK, ls=":", lw=1.5)
    axes.set_yticks(range(len(times)), [counted(p.ranks, "host") for p in predictions])
    axes.set_xlim(0, 1.02 * max(ends))
    axes.set_xlabel("seconds a step; speed: examples a second / those of one host")
    _finish(axes, f"Step time over {link.name}")


def _stack(
    axes: Axes, parts: Mapping[str, Sequence[float]], colors: Mapping[str, str]
) -> list[float]:
    """Draw rows of stacked bars, without parts that are 0, and return their ends."""
    ends = [0.0] * len(next(iter(parts.values())))
    for name, widths in parts.items():
        if any(widths):
            rows = range(len(widths))
            axes.barh(rows, widths, 0.66, ends, color=colors[name], label=name)
            ends = [end + width for end, width in zip(ends, widths, strict=True)]
    return ends


def _note(axes: Axes, row: int, text: str, *, bold: bool = False) -> None:
    """Write the text of a row to the right of the bars."""
    axes.annotate(
        text,
        (1.01, row),
        xycoords=("axes fraction", "data"),
        va="center",
        weight="bold" if bold else "normal",
    )


def _name(choice: Choice, shown: Prediction) -> str:
    """Return the changes of a choice, three on a line; "*" marks the recommended."""
    words: list[str] = [*choice.changes] or ["as it is"]
    lines = [", ".join(words[start : start + 3]) for start in range(0, len(words), 3)]
    return "* " * (choice is shown.recommended) + ",\n".join(lines)


def _finish(axes: Axes, title: str) -> None:
    """Add the legend between the title and the bars, the first of which is on top."""
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    pairs = zip(*axes.get_legend_handles_labels(), strict=True)
    handles, labels = zip(*sorted(pairs, key=_is_line), strict=True)
    axes.legend(
        handles,
        labels,
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=_LEGEND_COLUMNS,
        fontsize=9,
        handlelength=1.2,
        columnspacing=1.2,
    )
    points = 14 * math.ceil(len(labels) / _LEGEND_COLUMNS) + 8  # of the legend
    axes.set_title(title, loc="left", fontsize=10, weight="bold", pad=points)


def _is_line(pair: tuple[object, str]) -> bool:
    """Whether an entry of the legend is a line, not a part of the bars."""
    return pair[1] not in _MEMORY and pair[1] not in _TIME
