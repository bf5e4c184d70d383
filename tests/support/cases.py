"""Which tests a run takes, where another run takes the others."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence


def part_of(tests: Sequence[str], part: int, parts: int) -> set[str]:
    """Return the node ids of one of several parts of all tests.

    The cases of a parametrized test are dealt out to the parts, in an order that does
    not follow their parameters: else a part would have, say, one transport alone. Tests
    of one case are dealt out by their names.

    Args:
        part: from 0.
    """
    cases: dict[str, list[str]] = defaultdict(list)
    for test in tests:
        cases[test.partition("[")[0]].append(test)
    kept: set[str] = set()
    for name, group in cases.items():
        group.sort(key=number_of)
        kept |= set(group[(part + number_of(name)) % parts :: parts])
    return kept


def number_of(name: str) -> int:
    """Return a number that is the same in each process, and follows no order."""
    return zlib.crc32(name.encode())
