"""Pictures of results, as PNG and SVG. Needs matplotlib, from mlxdist[plot]."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OURS = "#1f5fa8"
OURS_TOO = "#6aa5e0"
THEIRS = "#d9632b"
THEIRS_TOO = "#eeb193"
OTHERS = "#8a8f98"
LINE = "#2f2f2f"


@contextmanager
def picture(
    path: Path,
    title: str,
    *,
    size: tuple[float, float] = (9, 5),
    columns: int = 1,
    grid: str = "both",
) -> Iterator[Any]:
    """A figure's axes to draw into; `path` with .png and with .svg has it afterwards.

    Yields the axes, or an array of them where there are several columns; `grid` is the
    axis that has lines: "x", "y" or "both". Nothing is
    written where the drawing fails, and an old picture stays until it is replaced.

    Raises:
        ImportError: there is no matplotlib.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": "mlxdist", "font.size": 10}):
        figure, axes = pyplot.subplots(1, columns, figsize=size, layout="constrained")
        try:
            yield axes
            figure.suptitle(title, x=0.01, ha="left", fontsize=12)
            for each in axes if columns > 1 else [axes]:
                each.grid(color="#ececec", axis=grid)
                each.set_axisbelow(True)
                each.spines[["top", "right"]].set_visible(False)
            _save(figure, path)
        finally:
            pyplot.close(figure)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix, options in ((".png", {"dpi": 150}), (".svg", {})):
        beside = path.with_name(f".{path.stem}.new{suffix}")
        metadata = {"Date": None} if suffix == ".svg" else None
        figure.savefig(beside, metadata=metadata, **options)
        beside.replace(path.with_suffix(suffix))
