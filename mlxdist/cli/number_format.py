"""Numbers as text, for tables and messages."""

from __future__ import annotations


def gigabytes(nbytes: float) -> str:
    """Format bytes as `1.5 GB`, where 1 GB is 10^9 bytes."""
    return f"{short(nbytes / 1e9)} GB"


def short(number: float) -> str:
    """Format a number with three significant digits, or all of a larger integer."""
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"


def counted(number: int, noun: str) -> str:
    """Format a number and a noun: `1 host`, `2 hosts`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
