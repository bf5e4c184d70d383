"""What a benchmark's figures mean, in words: verdicts on ratios, bounds and ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console


def verdict_of(pair: str, ratio: Mapping[str, Any]) -> str:
    """Return what a ratio of two times says.

    Such as "sharded takes 0.94 of the time of torch (0.90 to 0.97): faster". Where the
    interval contains 1 the samples show no difference.

    Args:
        pair: "a / b", as in `record`.
    """
    name, other = pair.split(" / ")
    low, high = ratio["interval"]
    word = "faster" if high < 1 else "slower" if low > 1 else "no clear difference"
    return (
        f"{name} takes {ratio['ratio']:.2f} of the time of {other} "
        f"({low:.2f} to {high:.2f}): {word}"
    )


def bound_text(what: str, value: float, bound: float, unit: str) -> str:
    """Return whether a figure keeps its upper bound, in words."""
    word = "within" if value <= bound else "ABOVE"
    return f"{what} {value:.3g} {unit}, {word} the bound of {bound:g} {unit}"


def print_verdict(console: Console, text: str) -> None:
    """Print a verdict on a line of its own, which begins with an arrow."""
    console.print(f"-> {text}", soft_wrap=True)


def print_verdicts(console: Console, ratios: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the verdict of each pair of times."""
    for pair, ratio in ratios.items():
        print_verdict(console, verdict_of(pair, ratio))
