"""Numbers and nouns in messages."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return a number and its noun: "1 host", "2 hosts", "1,000 hosts"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
