"""The plot of `state_dtype`: losses, and their differences from a reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ranks.state_dtype_rank import (
    AFFINE,
    BFLOAT16,
    FLOAT32,
    MEANS,
    PERTURBED,
    VARIANTS,
)

from . import plots
from .record import Result

COLORS = {
    FLOAT32: plots.BLACK,
    BFLOAT16: plots.NAVY,
    MEANS: plots.BLUE,
    PERTURBED: plots.GRAY,
    "int8": plots.BLUE,
    "int8, embeddings too": plots.LIGHT_BLUE,
    AFFINE: plots.ORANGE,
}


def draw(path: Path, result: Result, most: float) -> None:
    """Draw the losses of each task, and the differences from the reference below them.

    Args:
        most: the bound of a difference.
    """
    tasks = result["tasks"]
    title = "Loss with fewer bits, against a reference"
    size = (5.5 * len(tasks), 6.5)
    with plots.figure(path, title, size=size, columns=len(tasks), rows=2) as axes:
        columns = axes.reshape(2, len(tasks)).T
        for (name, task), (above, below) in zip(tasks.items(), columns, strict=True):
            above.set_title(f"{name}, {task['steps']:,} steps", loc="left", fontsize=10)
            _draw_losses(above, task)
            _draw_differences(below, task, most)
        columns[0][0].set_ylabel("training loss, nats a byte")
        columns[0][1].set_ylabel("loss / reference's - 1, %")
        columns[0][0].legend(frameon=False)


def _draw_losses(axes: Any, task: Result) -> None:
    for variant, seeds in task["variants"].items():
        for number, run in enumerate(seeds):
            steps = np.linspace(0, task["steps"], len(run["curve"]))
            label = variant if number == 0 else None
            style = "--" if variant == PERTURBED else "-"
            color = COLORS[variant]
            axes.plot(steps, run["curve"], style, color=color, lw=1, label=label)
    references = [
        run["curve"]
        for variant, seeds in task["variants"].items()
        if VARIANTS[variant].reference == variant
        for run in seeds
    ]
    axes.set_ylim(0.9 * np.min(references), 1.1 * np.max(references))


def _draw_differences(axes: Any, task: Result, most: float) -> None:
    """Draw the differences over a twentieth of the run, on a scale that fits all."""
    percent = 100 * most
    axes.axhspan(-percent, percent, color="#e3edf7", label=f"within {percent:g}%")
    for variant, seeds in task["variants"].items():
        references = task["variants"][VARIANTS[variant].reference]
        for run, reference in zip(seeds, references, strict=True):
            window = np.ones(max(1, len(run["curve"]) // 20))
            losses = np.convolve(run["curve"], window, "valid")
            others = np.convolve(reference["curve"], window, "valid")
            steps = np.linspace(task["steps"] / 20, task["steps"], len(losses))
            axes.plot(steps, 100 * (losses / others - 1), color=COLORS[variant], lw=1)
    axes.set_yscale("symlog", linthresh=2 * percent)
    limits = axes.get_ylim()
    large = [10**power for power in range(1, 9, 2) if 10**power < limits[1]]
    axes.set_yticks([-percent, 0, percent, *large])
    axes.set_ylim(limits)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("steps")
