"""The picture of `memory`: memory of a rank over the number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ranks.memory_modes import MODES, UPSTREAM

from mlxdist.layout.buckets import DEFAULT_BUCKET_SIZE
from mlxdist.planner import memory, model_of_size

from . import plots
from .record import Result

RANKS = (1, 2, 4, 8)
LARGE = 8_000_000_000  # parameters in bfloat16, with masters
LIMIT = 64  # GB of a Mac
LINES = {
    "replicated update": plots.GRAY,
    "sharded update": plots.ORANGE,
    "sharded minimize": plots.LIGHT_BLUE,
    "minimize, 8-bit state": plots.BLUE,
    "minimize, 8-bit state, unchecked": plots.NAVY,
}
PEAKS = {
    UPSTREAM: plots.ORANGE,
    "replicated update": plots.GRAY,
    "sharded update": plots.LIGHT_BLUE,
    "sharded minimize": plots.BLUE,
    "minimize, 8-bit state": plots.NAVY,
}
PEAK_LABELS = {
    UPSTREAM: "nn.average_gradients",
    "replicated update": "mlxdist, replicated",
    "sharded update": "sharded state",
    "sharded minimize": "and minimize()",
    "minimize, 8-bit state": "and 8-bit state",
}
NUDGES = {  # GB by which the labels of close lines are moved
    "sharded minimize": 3,
    "minimize, 8-bit state": 1,
    "minimize, 8-bit state, unchecked": -4,
}


def draw(path: Path, measured: list[Result], tensors: str) -> None:
    """Draw what was measured, and a large model by the same sum.

    Raises:
        ImportError: matplotlib is not installed.
    """
    measured = [case for case in measured if case["mode"] != UPSTREAM]
    dtypes = [case["dtype"] for case in measured]
    dtype = "bfloat16" if "bfloat16" in dtypes else "float32"
    title = "Memory of a rank that trains with AdamW"
    with plots.figure(path, title, size=(11, 4.6), columns=2, grid="y") as axes:
        left, right = axes
        _draw_measured(left, [case for case in measured if case["dtype"] == dtype])
        masters = ", with masters" if dtype == "bfloat16" else ""
        heading = {"loc": "left", "fontsize": 10}
        left.set_title(f"{tensors} parameters in {dtype}{masters}", **heading)
        left.set_ylabel("MB a rank")
        _draw_large(right)
        right.set_title("8B parameters in bfloat16, with masters: predicted", **heading)
        right.set_ylabel("GB a rank")
        for each in axes:
            each.set_xscale("log", base=2)
            each.set_xticks(*[RANKS] * 2)
            each.set(xlabel="ranks", ylim=(0, None), xlim=(0.9, 8.9))
            each.minorticks_off()
        right.set_xlim(0.9, 45)


def draw_peaks(path: Path, measured: list[Result], tensors: str) -> None:
    """Draw what was measured in float32, with upstream's, at a size for a README.

    Raises:
        ImportError: matplotlib is not installed.
    """
    cases = [case for case in measured if case["dtype"] == "float32"]
    title = f"Peak memory of a rank: {tensors} float32 parameters, AdamW"
    below = float("inf")  # where the next label may be
    with plots.figure(path, title, size=(7.2, 3.7), grid="y") as axes:
        for name, color in PEAKS.items():
            peaks = {
                case["ranks"]: case["peak"] / 1e6
                for case in cases
                if case["mode"] == name
            }
            axes.plot([*peaks], [*peaks.values()], "o-", color=color, linewidth=2)
            y = min(peaks[max(peaks)], below)
            below = y - 50
            options = {"va": "center", "fontsize": 11}
            axes.annotate(PEAK_LABELS[name], (8.8, y), color=color, **options)
        axes.set_xscale("log", base=2)
        axes.set_xticks(*[RANKS] * 2)
        axes.set(xlabel="ranks", ylabel="MB", ylim=(0, None), xlim=(0.9, 27))
        axes.minorticks_off()


def _draw_measured(axes: Any, measured: list[Result]) -> None:
    for mode, color in LINES.items():
        cases = [case for case in measured if case["mode"] == mode]
        ranks = [case["ranks"] for case in cases]
        peaks = [case["peak"] / 1e6 for case in cases]
        predicted = [case["predicted"] / 1e6 for case in cases]
        axes.plot(ranks, predicted, "--", color=color, linewidth=1)
        axes.plot(ranks, peaks, "o-", color=color, markersize=5)
    for style, label in (("o-", "measured"), ("--", "predicted by mlxdist plan")):
        axes.plot([], [], style, color=plots.BLACK, linewidth=1, ms=5, label=label)
    axes.legend(frameon=False, loc="lower left")


def _draw_large(axes: Any) -> None:
    model = model_of_size(LARGE, "bfloat16", "adamw", bucket_size=DEFAULT_BUCKET_SIZE)
    for name, color in LINES.items():
        mode = MODES[name]
        strategy = "elements" if mode.is_sharded else "replicated"
        options = mode.memory_options("bfloat16", overlaps=True)
        gigabytes = [memory(model, n, strategy, options).total / 1e9 for n in RANKS]
        axes.plot(RANKS, gigabytes, "o-", color=color, markersize=5)
        y = gigabytes[-1] + NUDGES.get(name, 0)
        axes.annotate(name, (8.8, y), color=color, va="center", fontsize=9)
    axes.plot([0.9, 8], [LIMIT, LIMIT], ":", color=plots.BLACK, linewidth=1.5)
    axes.annotate("a Mac with 64 GB", (8.8, LIMIT), va="center", fontsize=9)
