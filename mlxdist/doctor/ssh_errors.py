"""Errors of ssh and of the remote shell, classified by their messages.

To recognize another message, add a row to _PATTERNS.
"""

from __future__ import annotations

import re
from typing import Literal

Problem = Literal[
    "no ssh client",
    "no key",
    "unknown host key",
    "unknown name",
    "no python",
    "refused",
    "unreachable",
    "unknown",
]

# The first matching row counts. Messages of OpenSSH, and of bash, dash and zsh.
_PATTERNS: tuple[tuple[str, Problem], ...] = (
    (r"Permission denied \(|no such identity", "no key"),
    (r"Host key verification failed", "unknown host key"),
    (r"resolve hostname|not known", "unknown name"),
    (
        r"[Nn]o such file|not found|[Nn]ot a directory|Permission denied",
        "no python",
    ),
    (r"refused", "refused"),
    (r"No route|timed out|unreachable|port 22", "unreachable"),
)


def classify(message: str) -> Problem:
    """Return the problem that an error message of ssh or of the remote shell names."""
    for pattern, problem in _PATTERNS:
        if re.search(pattern, message):
            return problem
    return "unknown"
