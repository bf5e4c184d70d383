"""Numbers, nouns and long texts in messages."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return a number and its noun: "1 host", "2 hosts", "1,000 hosts"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def shortened(text: str, limit: int = 500) -> str:
    """Return a text of at most about `limit` characters, cut in its middle."""
    if len(text) <= limit:
        return text
    head, tail = limit * 2 // 3, limit // 3
    cut = len(text) - head - tail
    return f"{text[:head]}... ({cut:,} characters) ...{text[-tail:]}"
