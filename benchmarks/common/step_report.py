"""What `step` shows: its tables, its share of the memory's speed, its picture."""

from __future__ import annotations

import contextlib
import json
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

import common
from common import plots
from common.step_cases import MLXDIST, TORCH, UPSTREAM, UPSTREAM_TUNED

IDEAL = 6.5  # bytes moved for each byte of gradients: see step.py
IDEAL_CACHED = 4.5


def so_far(path: Path | None) -> dict[str, Any]:
    """What a file holds of cases measured before."""
    if path is None or not path.exists():
        return {}
    before = json.loads(path.read_text())
    return {key: before[key] for key in ("cases", "world of one") if key in before}


def available_memory() -> int:
    """Bytes that new processes can have."""
    with contextlib.suppress(OSError):
        text = Path("/proc/meminfo").read_text()
        if found := re.search(r"MemAvailable:\s+(\d+) kB", text):
            return int(found[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_limit(
    nbytes: int, stream: Mapping[str, Sequence[float]], summary: Mapping[str, Any]
) -> dict[str, Any]:
    """How far a sharded step is from what memory's speed allows; rates are bytes/s."""
    rates = {kind: statistics.median(samples) for kind, samples in stream.items()}
    best = max(rates.values())
    limits = {
        "seconds": IDEAL * nbytes / best,
        "seconds_passing_through_cache": IDEAL_CACHED * nbytes / best,
    }
    times = {
        name: summary[name]["median"] / limits["seconds"]
        for name in MLXDIST
        if name in summary
    }
    return {
        "bytes_per_second_and_rank": rates,
        "samples": {kind: list(samples) for kind, samples in stream.items()},
        **limits,
        "times_the_limit": times,
    }


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"


def print_case(out: Console, name: str, case: Mapping[str, Any]) -> None:
    def ratio(one: str, other: str) -> str:
        found = case["ratios"].get(f"{one} / {other}")
        return f"{found['ratio']:.3f}" if found else ""

    rivals = [UPSTREAM, UPSTREAM_TUNED, *TORCH]
    rivals = [rival for rival in rivals if rival in case["summary"]]
    rows = []
    for contender, summary in case["summary"].items():
        low, high = summary["quartiles"]
        spread = f"{milliseconds(low)} to {milliseconds(high)}"
        ratios = [ratio(contender, rival) for rival in rivals]
        rows.append([contender, milliseconds(summary["median"]), spread, *ratios])
    columns = ["contender", "ms", "quartiles", *(f"/ {rival}" for rival in rivals)]
    common.print_table(out, name, columns, rows)
    if memory := case.get("memory"):
        shares = memory["times_the_limit"].items()
        told = ", ".join(f"{name} {times:.2f}" for name, times in shares)
        limit = milliseconds(memory["seconds"])
        rates = memory["bytes_per_second_and_rank"]
        out.print(
            f"memory: copy {rates['copy'] / 1e9:.1f}, add {rates['add'] / 1e9:.1f} "
            f"GB/s a rank; limit {limit} ms; {told} times that"
        )
    for contender, phases in case["phases"].items():
        told = ", ".join(f"{n} {milliseconds(s)}" for n, s in phases.items())
        out.print(f"{contender}, ms: {told}")
    out.print()


def print_solo(out: Console, tensors: str, solo: Mapping[str, Any]) -> None:
    rows = []
    for pair, ratio in solo["ratios"].items():
        one, other = (solo["summary"][name]["median"] for name in pair.split(" / "))
        low, high = ratio["interval"]
        spread = f"{low:.3f} to {high:.3f}"
        figures = milliseconds(one), milliseconds(other), f"{ratio['ratio']:.3f}"
        rows.append([pair, *figures, spread])
    columns = ["world of one", "ms", "bare ms", "ratio", "19 in 20"]
    common.print_table(out, f"{tensors} float32", columns, rows)
    out.print()


COLORS = {
    "sharded": plots.OURS,
    "replicated native": plots.OURS_TOO,
    "replicated host": "#a9cbee",
    UPSTREAM: plots.THEIRS,
    UPSTREAM_TUNED: plots.THEIRS_TOO,
    "torch": plots.OTHERS,
    "torch zero": "#c3c7cd",
}


def draw(path: Path, result: Mapping[str, Any]) -> None:
    """Bars: each contender's time against upstream's as installed, case by case."""
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
        plots.picture(path, title, size=(10, 5.5), grid="y") as axes,
    ):
        _draw_bars(axes, cases)


def _draw_bars(axes: Any, cases: Mapping[str, Any]) -> None:
    width = 0.9 / len(COLORS)
    for offset, (contender, color) in enumerate(COLORS.items()):
        at, heights = [], []
        for place, case in enumerate(cases.values()):
            if contender in case["summary"]:
                base = case["summary"][UPSTREAM]["median"]
                at.append(place + (offset - len(COLORS) / 2) * width)
                heights.append(case["summary"][contender]["median"] / base)
        if at:
            axes.bar(at, heights, width, align="edge", color=color, label=contender)
    axes.axhline(1, color=plots.LINE, linewidth=0.8)
    labels = [
        f"{name}\n{milliseconds(case['summary'][UPSTREAM]['median'])} ms"
        for name, case in cases.items()
    ]
    turned = {"rotation": 35, "ha": "right"} if len(cases) > 6 else {}
    axes.set_xticks(range(len(cases)), labels, **turned)
    axes.set_ylabel("time / upstream's as installed (below)")
    axes.figure.legend(frameon=False, ncols=4, loc="outside lower center")
