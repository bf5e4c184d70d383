"""Figures for light and dark pages, as PNG and SVG. Needs the extra `plot`."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from ..launcher.private_files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, LIGHT_BLUE, PALE_BLUE = "#1f5fa8", "#6aa5e0", "#a9cbee"
ORANGE, LIGHT_ORANGE = "#d9632b", "#eeb193"
GRAY, LIGHT_GRAY = "#8a8f98", "#c3c7cd"
BLACK, WHITE, GRID = "#2f2f2f", "#ffffff", "#ececec"
NAVY = "#0d2f57"

# What each colour becomes on a dark page.
DARK = {
    BLACK: "#e4e6ea",
    WHITE: "#16181d",
    GRID: "#3a3d44",
    BLUE: "#5c9ded",
    LIGHT_BLUE: "#8fc1f5",
    PALE_BLUE: "#4c6f96",
    NAVY: "#c4dcf7",
    ORANGE: "#f0885a",
    LIGHT_ORANGE: "#a8684a",
    GRAY: "#9aa0aa",
    LIGHT_GRAY: "#5d626b",
}
SUFFIXES = (".png", ".svg")
GridLines: TypeAlias = Literal["both", "x", "y"]  # at the ticks of these axes


@contextmanager
def figure(
    path: Path,
    title: str,
    *,
    size: tuple[float, float],
    columns: int = 1,
    heights: Sequence[float] = (1,),
    grid: GridLines = "both",
    suffixes: Sequence[str] = SUFFIXES,
) -> Iterator[list[Axes]]:
    """Yield the axes of a figure, row by row; save it if the block raises no error.

    Args:
        path: its name; the suffixes replace its own.
        size: in inches.
        heights: of the rows, relative to one another.
        grid: the axis with grid lines: "x", "y" or "both".
        suffixes: .png for a picture on white; .svg for one without a ground for light
            pages, and one for dark pages, see `dark_path`.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: a file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context():
        _set_style()
        plot = pyplot.figure(figsize=size, layout="constrained")
        try:
            panels = plot.subplots(
                len(heights), columns, height_ratios=heights, squeeze=False
            )
            every: list[Axes] = list(panels.flat)
            yield every
            plot.suptitle(title, x=0.01, ha="left", fontsize=12)
            for axes in every:
                _add_grid(axes, grid)
            for suffix in suffixes:
                _save(plot, path.with_suffix(suffix))
        finally:
            pyplot.close(plot)


def _set_style() -> None:
    """Change matplotlib's settings; the caller restores them."""
    from matplotlib import rc

    rc("svg", hashsalt="mlxdist")  # equal figures give equal files
    rc("font", size=10)
    rc("text", color=BLACK)
    rc("axes", edgecolor=BLACK, labelcolor=BLACK)
    rc("xtick", color=BLACK)
    rc("ytick", color=BLACK)


def _add_grid(axes: Axes, grid: GridLines) -> None:
    axes.grid(color=GRID, axis=grid)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def dark_path(path: Path) -> Path:
    """Return the path of an SVG's copy for dark pages."""
    return path.with_name(f"{path.stem}_dark.svg")


def _save(plot: Figure, path: Path) -> None:
    content = io.BytesIO()
    if path.suffix == ".png":
        plot.savefig(content, format="png", dpi=150)
    else:  # without a date, equal figures give equal files
        plot.savefig(content, format="svg", transparent=True, metadata={"Date": None})
        drawing = content.getvalue().decode()
        dark = re.sub("|".join(DARK), lambda color: DARK[color[0]], drawing)
        write_atomically(dark_path(path), dark, mode=0o666)
    write_atomically(path, content.getvalue(), mode=0o666)
