"""Plots of results, as PNG and SVG. Need matplotlib, from mlxdist[plot]."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BLUE, LIGHT_BLUE, PALE_BLUE = "#1f5fa8", "#6aa5e0", "#a9cbee"  # mlxdist
ORANGE, LIGHT_ORANGE = "#d9632b", "#eeb193"  # upstream
GRAY, LIGHT_GRAY = "#8a8f98", "#c3c7cd"  # others
BLACK = "#2f2f2f"


@contextmanager
def figure(
    path: Path,
    title: str,
    *,
    size: tuple[float, float] = (9, 5),
    columns: int = 1,
    rows: int = 1,
    grid: str = "both",
) -> Iterator[Any]:
    """Yield the axes of a figure, which is saved when the block ends without an error.

    Args:
        path: saved with the suffixes .png and .svg in place of its own.
        columns, rows: with more than one, an array of axes is yielded.
        grid: the axis with grid lines: "x", "y" or "both".

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": "mlxdist", "font.size": 10}):
        plot, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained")
        try:
            yield axes
            plot.suptitle(title, x=0.01, ha="left", fontsize=12)
            for each in axes.flat if columns * rows > 1 else [axes]:
                each.grid(color="#ececec", axis=grid)
                each.set_axisbelow(True)
                each.spines[["top", "right"]].set_visible(False)
            _save(plot, path)
        finally:
            pyplot.close(plot)


def _save(plot: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix, options in ((".png", {"dpi": 150}), (".svg", {})):
        temporary = path.with_name(f".{path.stem}.{secrets.token_hex(8)}{suffix}")
        # Without a date, equal results give equal files.
        metadata = {"Date": None} if suffix == ".svg" else None
        with temporary.open("xb") as file:
            plot.savefig(file, format=suffix[1:], metadata=metadata, **options)
        temporary.replace(path.with_suffix(suffix))
