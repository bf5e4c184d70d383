"""Numbers as text, for tables and messages."""

from __future__ import annotations


def gigabytes(nbytes: float) -> str:
    """Format bytes as `1.5 GB`, where 1 GB is 10^9 bytes."""
    return f"{short(nbytes / 1e9)} GB"


def short(number: float) -> str:
    """Format a number with three significant digits, or all of a larger integer."""
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"
