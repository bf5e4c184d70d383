"""Plots of results: a PNG, and SVGs for light and dark pages. Need mlxdist[plot]."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mlxdist.cli import figures
from mlxdist.cli.figures import (
    BLACK,
    BLUE,
    DARK,
    GRAY,
    GRID,
    LIGHT_BLUE,
    LIGHT_GRAY,
    LIGHT_ORANGE,
    NAVY,
    ORANGE,
    PALE_BLUE,
    WHITE,
)

__all__ = [
    "BLACK",
    "BLUE",  # with its tints: mlxdist
    "DARK",
    "GRAY",  # others
    "GRID",
    "LIGHT_BLUE",
    "LIGHT_GRAY",
    "LIGHT_ORANGE",
    "NAVY",
    "ORANGE",  # upstream
    "PALE_BLUE",
    "WHITE",
    "figure",
]


@contextmanager
def figure(
    path: Path,
    title: str,
    *,
    size: tuple[float, float] = (9, 5),
    columns: int = 1,
    rows: int = 1,
    grid: figures.GridLines = "both",
) -> Iterator[Any]:
    """Yield the axes of a figure, which is saved when the block ends without an error.

    Args:
        path: saved as .png, as .svg on a transparent ground, and, for dark pages, as
            such a file whose name ends with _dark.
        columns, rows: with more than one, an array of axes is yielded.
        grid: the axis with grid lines: "x", "y" or "both".

    Raises:
        ImportError: matplotlib is not installed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with figures.figure(
        path, title, size=size, columns=columns, heights=[1] * rows, grid=grid
    ) as axes:
        array = np.array(axes).reshape(rows, columns)
        yield array.squeeze() if array.size > 1 else axes[0]
