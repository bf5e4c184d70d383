"""Tables and plot of `step`, and its times as multiples of the memory bandwidth's."""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from . import plots
from .record import Result, print_table
from .step_cases import MLXDIST, TORCH, UPSTREAM, UPSTREAM_COMPILED, UPSTREAM_TUNED
from .verdict import print_verdicts

# Bytes that an ideal step moves for each byte of gradients: see step.py.
BYTES_MOVED = 6.5
BYTES_MOVED_CACHED = 4.5

LEGEND = """\
ms: median of the slowest rank from gradients ready to parameters ready, and quartiles;
lower is better. / x: over the median of x, below 1 is faster."""
LEGEND_OF_ONE = """\
One rank: ms with mlxdist and with MLX's optimizer alone; ratio 1 costs nothing. 19 in
20: its 95% interval."""

COLORS = {
    "sharded": plots.BLUE,
    "replicated native": plots.LIGHT_BLUE,
    "replicated host": plots.PALE_BLUE,
    UPSTREAM: plots.ORANGE,
    UPSTREAM_TUNED: plots.LIGHT_ORANGE,
    "torch": plots.GRAY,
    "torch zero": plots.LIGHT_GRAY,
}


def earlier_cases(path: Path | None) -> Result:
    """Return the cases that a JSON file has from an earlier run."""
    if path is None or not path.exists():
        return {}
    result = json.loads(path.read_text())
    return {key: result[key] for key in ("cases", "world of one") if key in result}


def memory_limit(
    nbytes: int, stream: Mapping[str, Sequence[float]], summary: Mapping[str, Any]
) -> Result:
    """Return the time that memory bandwidth allows, and each contender's multiple.

    Args:
        nbytes: of the gradients.
        stream: bytes per second and rank of STREAM's operations.
    """
    rates = {kind: statistics.median(samples) for kind, samples in stream.items()}
    best = max(rates.values())
    limits = {
        "seconds": BYTES_MOVED * nbytes / best,
        "seconds_passing_through_cache": BYTES_MOVED_CACHED * nbytes / best,
    }
    return {
        "bytes_per_second_and_rank": rates,
        "samples": {kind: list(samples) for kind, samples in stream.items()},
        **limits,
        "times_the_limit": {
            name: summary[name]["median"] / limits["seconds"]
            for name in MLXDIST
            if name in summary
        },
    }


def print_case(console: Console, name: str, case: Result) -> None:
    others = [UPSTREAM, UPSTREAM_TUNED, UPSTREAM_COMPILED, *TORCH]
    others = [other for other in others if other in case["summary"]]
    rows = []
    for contender, summary in case["summary"].items():
        low, high = map(milliseconds, summary["quartiles"])
        pairs = (f"{contender} / {other}" for other in others)
        ratios = [_ratio(case["ratios"].get(pair)) for pair in pairs]
        median = milliseconds(summary["median"])
        rows.append([contender, median, f"{low} to {high}", *ratios])
    columns = ["contender", "ms", "quartiles", *(f"/ {other}" for other in others)]
    print_table(console, name, columns, rows, LEGEND)
    best = {f"sharded / {other}" for other in others}
    print_verdicts(console, {p: r for p, r in case["ratios"].items() if p in best})
    if memory := case.get("memory"):
        _print_memory(console, memory)
    for contender, phases in case["phases"].items():
        text = ", ".join(f"{n} {milliseconds(s)}" for n, s in phases.items())
        console.print(f"{contender}, ms: {text}")
    console.print()


def _ratio(ratio: Mapping[str, float] | None) -> str:
    return f"{ratio['ratio']:.3f}" if ratio else ""


def _print_memory(console: Console, memory: Result) -> None:
    rates = memory["bytes_per_second_and_rank"]
    multiples = memory["times_the_limit"].items()
    text = ", ".join(f"{name} {multiple:.2f}" for name, multiple in multiples)
    console.print(
        f"memory: copy {rates['copy'] / 1e9:.1f}, add {rates['add'] / 1e9:.1f} GB/s a "
        f"rank; limit {milliseconds(memory['seconds'])} ms; {text} times that"
    )


def print_world_of_one(console: Console, tensors: str, result: Result) -> None:
    rows = []
    for pair, ratio in result["ratios"].items():
        names = pair.split(" / ")
        medians = (milliseconds(result["summary"][n]["median"]) for n in names)
        low, high = ratio["interval"]
        rows.append([pair, *medians, _ratio(ratio), f"{low:.3f} to {high:.3f}"])
    columns = ["world of one", "ms", "bare ms", "ratio", "19 in 20"]
    print_table(console, f"{tensors} float32", columns, rows, LEGEND_OF_ONE)
    console.print()


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"


def draw(path: Path, result: Result) -> None:
    """Draw each contender's time relative to upstream's as installed, as bars."""
    cases = {
        name: case
        for name, case in result["cases"].items()
        if UPSTREAM in case["summary"]
    }
    if not cases:
        return
    title = "From gradients ready to parameters ready, AdamW"
    with (
        contextlib.suppress(ImportError),
        plots.figure(path, title, size=(10, 5.5), grid="y") as axes,
    ):
        _draw_bars(axes, cases)


def _draw_bars(axes: Any, cases: Mapping[str, Any]) -> None:
    baselines = [case["summary"][UPSTREAM]["median"] for case in cases.values()]
    width = 0.9 / len(COLORS)
    for offset, (contender, color) in enumerate(COLORS.items()):
        bars = [
            (x + (offset - len(COLORS) / 2) * width, summary["median"] / baseline)
            for x, (case, baseline) in enumerate(
                zip(cases.values(), baselines, strict=True)
            )
            if (summary := case["summary"].get(contender))
        ]
        if bars:
            left, heights = zip(*bars, strict=True)
            axes.bar(left, heights, width, align="edge", color=color, label=contender)
    axes.axhline(1, color=plots.BLACK, linewidth=0.8)
    labels = [
        f"{name}\n{milliseconds(baseline)} ms"
        for name, baseline in zip(cases, baselines, strict=True)
    ]
    rotation = {"rotation": 35, "ha": "right"} if len(cases) > 6 else {}
    axes.set_xticks(range(len(cases)), labels, **rotation)
    axes.set_ylabel("time / upstream's as installed (below)")
    axes.figure.legend(frameon=False, ncols=4, loc="outside lower center")
