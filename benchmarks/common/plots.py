"""Plots of results: a PNG, and SVGs for light and dark pages. Need mlxdist[plot]."""

from __future__ import annotations

import io
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BLUE, LIGHT_BLUE, PALE_BLUE = "#1f5fa8", "#6aa5e0", "#a9cbee"  # mlxdist
ORANGE, LIGHT_ORANGE = "#d9632b", "#eeb193"  # upstream
GRAY, LIGHT_GRAY = "#8a8f98", "#c3c7cd"  # others
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
TEXT = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
STYLE = {"svg.hashsalt": "mlxdist", "font.size": 10, **dict.fromkeys(TEXT, BLACK)}


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
        path: saved as .png, as .svg on a transparent ground, and, for dark pages, as
            such a file whose name ends with _dark.
        columns, rows: with more than one, an array of axes is yielded.
        grid: the axis with grid lines: "x", "y" or "both".

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(STYLE):
        plot, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained")
        try:
            yield axes
            plot.suptitle(title, x=0.01, ha="left", fontsize=12)
            for each in axes.flat if columns * rows > 1 else [axes]:
                each.grid(color=GRID, axis=grid)
                each.set_axisbelow(True)
                each.spines[["top", "right"]].set_visible(False)
            _save(plot, path)
        finally:
            pyplot.close(plot)


def _save(plot: Any, path: Path) -> None:
    image, drawing = io.BytesIO(), io.BytesIO()
    plot.savefig(image, format="png", dpi=150)
    # Without a date, equal results give equal files.
    metadata = {"Date": None}
    plot.savefig(drawing, format="svg", transparent=True, metadata=metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path.with_suffix(".png"), image.getvalue())
    _write(path.with_suffix(".svg"), drawing.getvalue())
    dark = re.sub(
        "|".join(DARK), lambda color: DARK[color[0]], drawing.getvalue().decode()
    )
    _write(path.with_name(f"{path.stem}_dark.svg"), dark.encode())


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(8)}{path.suffix}")
    with temporary.open("xb") as file:
        file.write(content)
    temporary.replace(path)
